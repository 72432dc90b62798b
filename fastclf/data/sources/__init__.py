"""Where images and labels come from: folders, tables, file names, arrays; and how they are split."""
