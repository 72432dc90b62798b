"""Images and their labels, from folders, tables or arrays to batches.

`listing` finds files, but what `left_out` names, `layout` the folders of the sets, `folders`, `name_labels`, `tables`
and `arrays` find and check labels, `split` chooses validation rows, `sets` puts the three sets together,
`data_loaders` holds them with their loaders, `classifier_data` hands them to the user. `scan` decodes every image
once, `seen` remembers what it saw, `bad_images` says what happens with those that cannot be decoded, `duplicates`
finds rows with the same bytes, `check` reports what is odd, and `describe` says in short what the data are.
`transforms` and `augmentations` declare what is done to an image, `draws` turns that into parameters, `pipeline`
draws the pixels, and `loader` owns the order of the rows.
"""
