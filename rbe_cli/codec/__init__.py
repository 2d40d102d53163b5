"""The codec: a tensor's bytes to the chunks of a layer file, and back.

`tensor_codec` is the way in: it chooses how a tensor is coded and joins what follows.

What is read: `source`, cut by `tiles`, and seen through `structure`: what is described, and what is left of it.
What is left is coded by `residual`, its head in `parameters`; or all of it exactly by `lossless`, with `side_info`.
Which structure, and which step, `choice` says. How it is run: `workspace`, `warm_up`.
"""
