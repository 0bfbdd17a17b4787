"""Graphs: values, copies, own nodes, and what every stage asks of a graph."""
