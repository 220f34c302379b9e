"""The report's charts as SVG with text alternatives; one module for each kind of chart.

Functions that draw a chart take its `name` (the file name without its ending), its `title` and its `notes`
(sentences below it); see `Chart`.
"""
