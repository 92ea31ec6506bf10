#!/bin/sh
wc -l < "$1" | tee count
