/* A function's entry led elsewhere, by a jump that no thread ever sees half of (x86-64). */

const NEAR_JUMP_BYTES = 5;
const STUB_BYTES = 256;
const ORIGINAL_AT = 128; // in a stub, behind what the jump leads to
const FRIDA_JUMP_BYTES = 16; // at most, of a hook that Frida writes

// A jump of 5 bytes, written in one store, where Frida would write it in two. The instructions that it overwrites are run
// elsewhere, before a jump to those that follow them: that is the original. Entries takes the jump back.
class Redirects {
  constructor() {
    this.stubs = []; // keeps their memory alive
  }

  // Has calls of `target` go to `replacement`; where the original is goes to `setOriginal` before the first can come.
  // Throws where the function does not allow it.
  replace(target, replacement, setOriginal) {
    this.redirect(target, stub => stub.putJmpAddress(replacement), setOriginal);
  }

  // As `replace`, with the original's address written to the pointer `original`; says whether it was done.
  tryReplace(target, replacement, original) {
    try {
      this.replace(target, replacement, place => original.writePointer(place));
    } catch (_) {
      return false;
    }
    return true;
  }

  // Has calls of `target` pass by the address that is returned, where a listener can be attached, while one of the two
  // words at `tracked` and `followed` is not 0, and go to the original at once while both are. No register changes. Throws as `replace` does.
  gate(target, tracked, followed) {
    let listened;
    this.redirect(target, (stub, original) => {
      for (const word of [tracked, followed]) {
        stub.putPushReg('r11'); // callers that were optimized together with the function may have something in any register
        stub.putMovRegAddress('r11', word);
        stub.putBytes([0x41, 0x83, 0x3b, 0x00]); // cmp dword [r11], 0
        stub.putPopReg('r11');
        stub.putJccShortLabel('jne', 'listened', 'no-hint');
      }
      stub.putJmpAddress(original);
      stub.putLabel('listened');
      listened = stub.pc;
      stub.putNopPadding(FRIDA_JUMP_BYTES);
      stub.putJmpAddress(original);
    }, () => {});
    return listened;
  }

  redirect(target, write, setOriginal) {
    if (Process.arch !== 'x64') throw new Error('x86-64 only');
    const word = target.and(ptr(7).not()), offset = target.sub(word).toUInt32();
    if (offset + NEAR_JUMP_BYTES > 8) throw new Error('the jump would lie across two words');
    const stub = Memory.alloc(Process.pageSize, { near: target, maxDistance: 0x70000000 });
    this.stubs.push(stub);
    const original = stub.add(ORIGINAL_AT);
    let whole = false; // what is thrown inside of patchCode gets lost
    Memory.patchCode(stub, STUB_BYTES, code => {
      const entry = new X86Writer(code, { pc: stub });
      write(entry, original);
      entry.flush();
      const moved = new X86Writer(code.add(ORIGINAL_AT), { pc: original });
      const relocator = new X86Relocator(target, moved);
      let bytes = 0;
      while (bytes < NEAR_JUMP_BYTES) {
        const read = relocator.readOne();
        if (read === 0) return;
        bytes = read;
      }
      relocator.writeAll();
      if (!relocator.eoi) moved.putJmpAddress(target.add(bytes));
      moved.flush();
      whole = true;
    });
    if (!whole) throw new Error('the function is too short');
    setOriginal(original);
    const bytes = new Uint8Array(word.readByteArray(8));
    bytes[offset] = 0xe9;
    new DataView(bytes.buffer).setInt32(offset + 1, stub.sub(target.add(NEAR_JUMP_BYTES)).toInt32(), true);
    if (!writeCode(word, [uint64(new BigUint64Array(bytes.buffer)[0].toString())])) throw new Error('the code cannot be written');
  }
}
