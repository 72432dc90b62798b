"""Images and their labels, from folders, tables, names or arrays to batches.

`sources` finds files and labels, `transforms` declares what is done to an image, `decode` makes batches, and
`validation` finds out which images can be decoded and what is odd about the data. `Dataset` puts a source and its
labels together, a `Loader` owns the order of its rows, and `ImageClassifierData` holds three data sets with the six
loaders over them.
"""
