"""Several processes: torchrun, DDP, FSDP2, sharded checkpoints."""
