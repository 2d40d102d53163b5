"""What commands let their users choose, and a default: here, since help must not wait for what does the work."""

#: What can make a point of a sweep best.
SWEEP_OBJECTIVES = ("gap", "snr", "bits", "encode", "decode")
#: Columns the table of a sweep can be sorted by.
SWEEP_SORTS = ("bits", "ratio", "size", "nrmse", "snr", "gap", "encode", "decode", "seconds")
#: Tokens a calibration reads.
CALIBRATION_TOKENS = 16384
