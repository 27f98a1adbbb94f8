"""Distribution matching: teacher and student meet by the scores of their laws."""
