"""Maps between times: MeanFlow, shortcut, AYF, FACM; reflow, progressive."""
