"""Structure: what is described in few numbers, and what is left of the weights.

pipeline         both together, on the way from weights to what is quantised, and back
low_rank         factors, of `components`, sent as a `side_matrix`; alone: `low_rank_codec`
transform        DCT, DWT and Karhunen-Loeve; alone, sparse and with the 8 functions of `basis`: `sparse_codec`,
                 in blocks of a `sparse_form`
decode_cost      what a structure has to gain to be worth its time
"""
