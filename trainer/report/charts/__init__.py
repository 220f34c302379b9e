"""The report's charts as SVG with text alternatives; one module for each kind of chart."""
