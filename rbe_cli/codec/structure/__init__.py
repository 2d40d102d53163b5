"""Structure: what is described in few numbers, and what is left of the weights.

pipeline         both together, on the way from weights to what is quantised, and back
low_rank         factors, of `components` (their `singular_vectors`), sent as a `side_matrix`
transform        DCT, DWT and Karhunen-Loeve
structure_only   without a coded residual: factors in a `low_rank_codec`; or sparse coefficients and the 8 functions of
                 `basis`, found by a `sparse_analysis`, stored by a `sparse_codec`, in blocks of a `sparse_form`
decode_cost      what a structure has to gain to be worth its time
"""
