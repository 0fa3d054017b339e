"""``dp-adapter prepare``: a folder of pictures becomes WebDataset shards of `Sample` records.

`list_pictures` finds the pictures · `work_runners` run `examine_picture` on each, `work_log` keeps the results ·
`find_captions` and `measured_captions` find words · `face_groups` and `selection` find duplicates and people ·
`shard_writer`, `output_folder` and `statistics_page` write · `prepare_shards` puts it together.
"""
