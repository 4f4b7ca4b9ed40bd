"""Other people's files, read: weights, configs and tokenizers of the Hugging Face kind, PEFT's adapters."""
