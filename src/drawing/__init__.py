"""The generated archive: H&E-like patches whose colours say nothing about the label."""
