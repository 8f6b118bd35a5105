"""Tip state of a scanning tunnelling microscope, told from its scan lines."""

#: The classes of the study, in the order of every probability column.
CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")
