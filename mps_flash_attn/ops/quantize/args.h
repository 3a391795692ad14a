// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
//
// Define: ROW_RANK, dimensions that number the rows: 1 where they are evenly spaced, else 4.
#pragma once

#include "msl/stored.h"
#include "msl/strides.h"

struct alignas(8) QuantizeArgs {
    long sizes[4];       // of the dimensions that number the rows
    long read_rows[4];   // strides over them of what is read, in its elements: the input, or stored bytes
    long scale_rows[4];  // likewise of the scales, where these are read
    long rows;
    long columns;        // D
    long groups;         // scales of a row
    long group_columns;  // that share a scale, D where all do
    long row_bytes;      // of a stored row
};
static_assert(sizeof(QuantizeArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
