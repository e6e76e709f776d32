#!/usr/bin/env bash
# The synthetic data sets: MNIST digits on photographs.
source "$(dirname "$0")/common.sh"

# One digit an image.
images single train 8000
images single validation 500
images single test 1200
images single-train-small train 2000

# None to eight digits an image.
images multi train 8000 --objects 0 8
images multi validation 300 --objects 0 8
images multi test 600 --objects 0 8
images train-small train 2000 --objects 0 8
images train-small validation 200 --objects 0 8

# The same, of some of the digits only.
images digits-0-4 train 2000 --objects 0 8 --digits 0 1 2 3 4
images digits-0-4 test 300 --objects 0 8 --digits 0 1 2 3 4
images digits-5-9 test 300 --objects 0 8 --digits 5 6 7 8 9
