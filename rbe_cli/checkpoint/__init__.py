"""Reading and writing safetensors checkpoints: files, folders, shards, the hub."""
