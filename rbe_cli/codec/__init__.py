"""The codec: a tensor's bytes to the chunks of a layer file, and back.

`tensor_codec` is the way in: it chooses how a tensor is coded and joins what follows.

What is read: `source`, cut by `tiles` and seen through a `pipeline` of structure (`low_rank`, of `components`) and
`transform`. What is coded: `trellis_codec`, of `scale_field`, `noise_shaping` (with `feedback`), `geometry`, `trellis`
and `tables`, its head in `parameters`; without a residual `sparse_codec` (with `basis`) or `low_rank_codec`; exactly
`lossless`. What goes along: `side_info`, `side_matrix`.

What is chosen: `wish`, `survey`, `promising`, `analysis`, `rounding`, `sample`, `decode_cost`; `rate_control` finds the
step. How it is run: `workspace`, `warm_up`.
"""
