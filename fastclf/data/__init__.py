"""Pictures and their labels, from folders, tables or arrays to batches.

`folders`, `tables` and `arrays` find and check samples, `split` chooses validation rows, `sets` puts the three sets
together, and `classifier_data` hands them to the user. `transforms` and `augmentations` declare what is done to a
picture, `draws` turns that into parameters, `pipeline` draws the pixels, and `loader` owns the order of the rows.
"""
