"""Checkpoints from one format into another, bit for bit, one piece of a tensor in memory at a time.

`formats` knows the kinds of files, `folders` chooses among those of a folder, `sources` opens them, `layouts`
finds the weights in a training checkpoint, `casting` rounds, `outputs` names, writes and reads back; `job`
puts them in order.
"""
