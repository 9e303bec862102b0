"""What computes: one class each, loaded by the family's application. Packages that are not required are imported late, and named when missing."""
