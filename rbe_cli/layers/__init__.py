"""The layers of a transformer, run from compressed weights, and the GPT-2 made of them.

encoded, weight_mapper -> low_rank_matrix, sparse_matrix, tiled_matrix (each a WeightMatrix)
-> weight_generator, fused_forward -> linear, layer_norm, embedding -> attention, ffn -> gpt2 -> generation
"""
