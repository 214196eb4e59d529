"""Proof, or disproof and location, that both trees compute what the reference computes, and the same as each
other.
"""
