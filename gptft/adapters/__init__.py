"""LoRA and its kin, and frozen weights in fewer bits."""
