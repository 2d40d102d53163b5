"""The codec: one module per stage, and the two coders that join them.

Lossy: `source` -> `scale_field` -> `trellis` -> `tables` -> `trellis_codec`. Exact: `lossless`. `rate_control` finds
the step; `parameters` is the head of a tensor's stream.
"""
