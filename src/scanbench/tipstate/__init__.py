"""Tip state of a scanning tunnelling microscope, told from its scan lines."""

#: The classes of the study, in the order of every probability column.
CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")

#: Where a data set's label table is in the folder that a rule makes for it, by source.
LABEL_TABLES = {
    "simulate": "labels.csv",
    "spm-toolbox": "Database/Classified Output 10-Aug-2017.xlsx",
}
