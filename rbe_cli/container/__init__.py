"""The .rbe layer file and the rbe.json manifest: bytes on disk, checked before they are believed.

folder       the way in: from a name to a tensor's pieces, and from these to its weights
manifest     what a folder holds; `headers` checks that its files are those the manifest speaks of
layer_file   the tensors of one layer, stored by one of the `methods`, in a file named by `names`
base         the model that a folder may be an update of, which `open_base` opens
canonical    JSON of one text for one value; `fields` are what may stand in it
"""
