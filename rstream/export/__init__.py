"""A window of a stream as a file for data people: JSON lines, CSV or Parquet, typed from the stored schema.

- `columns`: the columns and their kinds, from the schemas; a payload becomes a row. Pure.
- `text`, `parquet`: what writes rows.
- `target`: where to: standard output, or a file that appears when it is whole.
"""
