"""``dp-adapter prepare``: a folder of pictures becomes WebDataset shards of `Sample` records.

`listing` finds the pictures · `look` is the work on one of them, run by `runners` and kept in `done` · `captions` and
`measured` find words · `likeness` and `choice` find duplicates and people · `shards`, `output` and `statistics` write ·
`run` puts it together.
"""
