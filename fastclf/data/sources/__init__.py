"""Where images and labels come from.

A `Source` offers images by row: `files` below a folder, `arrays`, members of tar archives (`shards`), cells of
`parquet` files or of Hugging Face data sets (`hf`), or a kind of your own. `listing` finds files, `patterns` archives
and tables, `layout` the folders of the sets; `folders`, `name_labels`, `tables` and `array_checks` find and check
labels, and `split` chooses the rows for validation.
"""
