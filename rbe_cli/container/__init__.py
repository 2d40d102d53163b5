"""The .rbe layer file and the rbe.json manifest: bytes on disk, checked before they are believed."""
