"""Words that tables, pictures and messages share."""

CLASSES = ("normal", "tumour")  # by label: 0, 1
PATCH_ID = r"[0-9a-f]{40}"  # the whole id
