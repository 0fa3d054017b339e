"""``dp-adapter prepare``: a folder of pictures becomes WebDataset shards of `Sample` records.

`list_pictures` finds the pictures · `examine_picture` is the work on one of them, run by `runners` and kept in
`work_log` · `captions` and `measured_captions` find words · `duplicates` and `selection` find duplicates and people ·
`shard_writer`, `output_folder` and `statistics_page` write · `run` puts it together.
"""
