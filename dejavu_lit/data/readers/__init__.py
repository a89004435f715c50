"""Readers: one file per source of pairs, chosen by ``data.reader.type``."""

from dejavu_lit.utils.choices import Choices

READERS = Choices(
    "data.reader",
    "dejavu_lit.readers",
    {
        "coco": "dejavu_lit.data.readers.coco:CocoReader",
        "folder": "dejavu_lit.data.readers.folder:FolderReader",
        "parquet": "dejavu_lit.data.readers.table:ParquetReader",
        "scenes": "dejavu_lit.data.readers.scenes:SceneReader",
        "shards": "dejavu_lit.data.readers.shards:ShardReader",
        "single": "dejavu_lit.data.readers.scenes:SingleReader",
        "table": "dejavu_lit.data.readers.table:TableReader",
    },
)
