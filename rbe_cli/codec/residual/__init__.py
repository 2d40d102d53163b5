"""The coded residual: whatever values there are, near the Shannon limit.

analysis       what is to be known of a matrix to say size and error at any step; `rounding` to half precision's grid
forecast       the step that is expected to meet a size or an error; `rate_control` makes it do so
scale_field    how large the values of each place are; `noise_shaping` how large their errors may be, by importance
trellis_codec  values to streams, tile by tile, and back: `trellis` states, rANS `tables`, tiles in one `geometry`
feedback       errors of a weight made good in those after it
"""
