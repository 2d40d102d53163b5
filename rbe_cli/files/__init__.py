"""Files as such: read only if they are plain files, written whole or not at all."""
