"""Where images and labels come from.

A `Source` offers images by row: `files` below a folder, `arrays`, or a kind of your own. `listing` finds files,
`layout` the folders of the sets; `folders`, `name_labels`, `tables` and `array_checks` find and check labels, and
`split` chooses the rows for validation.
"""
