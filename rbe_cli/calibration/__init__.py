"""What a model's inputs say about its weights: measured on a text, or read from a file.

text -> batches -> observed model -> sums of the inputs -> importance file -> Importance, which the codec asks.
"""
