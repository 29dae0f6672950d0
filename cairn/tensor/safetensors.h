// Reading and writing of safetensors files: a JSON header, then the tensors' bytes.
// Invariant: a file is checked whole before the first tensor is made, and nothing is allocated on
// the word of a number in the file: the tensors together are never larger than the file.
//
// The reader's rules; an error names the file and the rule it breaks:
//   R1   At least 8 bytes; they hold the header's length, at most 100,000,000 and inside the file.
//   R2   The header is one JSON object in valid UTF-8 that starts at its first byte; after it only
//        white space.
//   R3   __metadata__ maps text to text.
//   R4   Each tensor has dtype, shape and data_offsets, once each, and nothing else; the dtype is a
//        known one, the sizes are non-negative integers, at most 8 of them.
//   R5   The tensors' bytes follow one another from 0 to the end of the file: no hole, no overlap.
//   R6   The size computed from shape and dtype does not overflow and equals the offsets' distance.
//   R7   No name appears twice.
//   R8   At most 1,000,000 tensors, names of at most 4,096 bytes.
//   R9   Values are not looked at: NaN and infinities pass. (Bytes of a BOOL are: only 0 and 1 are
//        values of a bool.)
//   R10  The file is a regular one, read with pread; one that shrinks meanwhile is an error. (The
//   text
//        of these two says so itself, as any reader of files in the library does.)
//   R11  Types narrower than a byte are refused.
//   R12  In the index of a sharded set, shards are plain file names beside the index, and each
//   listed
//        tensor exists in its shard.
#pragma once

#include <map>
#include <string>

#include "cairn/tensor/tensor.h"

namespace cairn {

// All tensors of the file by name, contiguous, on the CPU. Types: F64 F32 BF16 F16 I64 I32 U8 BOOL.
std::map<std::string, Tensor> load_safetensors(
    const std::string& path, std::map<std::string, std::string>* metadata = nullptr);

// The tensors listed in a `….safetensors.index.json`, from the shards beside it.
std::map<std::string, Tensor> load_sharded_safetensors(const std::string& index_path);

// Values are written in row-major order of the logical shape, whatever the strides. The bytes of a
// given set are always the same: widest types first, then by name. On an error nothing is left
// behind and an earlier file of that name stays as it was.
void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace cairn
