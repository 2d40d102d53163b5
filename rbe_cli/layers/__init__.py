"""The layers of a transformer, run from compressed weights, and the GPT-2 made of them.

weights -> linear, layer_norm, embedding -> attention, ffn -> gpt2 -> generation
"""
