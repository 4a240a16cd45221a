/* A function's entry led elsewhere, by a jump that no thread ever sees half of (x86-64). */

const JUMP_BYTES = 5; // e9 and a 32-bit displacement
const CS_PREFIX = 0x2e;
const FAR_JUMP_BYTES = 14; // with the address behind it
const STUB_BYTES = 256;
const ORIGINAL_AT = 128; // in a stub, behind what the jump leads to
const FRIDA_JUMP_BYTES = 16; // at most, of a hook that Frida writes
const MOST_PLACES = 64; // that are tried for a landing
const LARGEST_STACK = 0x40000000; // that a main thread without a limit is expected to have

// Memory at given addresses, each for a jump of FAR_JUMP_BYTES.
class Landings {
  constructor() {
    this.pages = new Map(); // address -> addresses of the jumps in it
  }

  // A place for one between `lowest` and `highest`, both included; null where there is none.
  reserve(lowest, highest) {
    const page = address => address.and(ptr(Process.pageSize - 1).not());
    const step = Math.max(1, Math.floor(highest.sub(lowest).toUInt32() / MOST_PLACES));
    for (let place = lowest; place.compare(highest) <= 0; place = place.add(step)) {
      const touched = [page(place), page(place.add(FAR_JUMP_BYTES - 1))];
      const others = touched.flatMap(address => this.pages.get(address.toString()) ?? []);
      if (others.some(other => Math.abs(other.sub(place).toInt32()) < FAR_JUMP_BYTES)) continue;
      if (!touched.every(address => this.have(address))) continue;
      touched.forEach(address => this.pages.get(address.toString()).push(place));
      return place;
    }
    return null;
  }

  have(page) {
    if (this.pages.has(page.toString())) return true;
    const { low, high } = this.mainStack ??= mainStack();
    if (page.add(Process.pageSize).compare(low) > 0 && page.compare(high) < 0) return false;
    const address = mapAt(page, Process.pageSize);
    if (address !== null) this.pages.set(page.toString(), []);
    return address !== null;
  }

  // Nobody comes by any more.
  dispose() {
    for (const page of this.pages.keys()) unmap(ptr(page), Process.pageSize);
    this.pages.clear();
  }
}

// Where the main thread's stack is, and may grow to.
function mainStack() {
  const found = File.readAllText('/proc/self/maps').match(/^([0-9a-f]+)-([0-9a-f]+) .*\[stack\]$/m);
  if (found === null) return { low: NULL, high: NULL };
  const limit = File.readAllText('/proc/self/limits').match(/^Max stack size +(\d+)/m);
  const high = ptr('0x' + found[2]);
  return { low: high.sub(Math.min(limit === null ? LARGEST_STACK : Number(limit[1]), LARGEST_STACK)), high };
}

// A jump of 5 bytes, which changes the function's first instruction only and is written in one store. A thread may be held up
// behind that instruction, and goes on there: so what the jump's bytes have in common with the following instructions stays as
// it is, whatever that makes of the jump's displacement, and where it leads to then there is memory of ours. The first
// instruction is run elsewhere, before a jump to the second: that is the original. Entries takes the jump back.
class Redirects {
  constructor() {
    this.stubs = []; // keeps their memory alive
    this.landings = new Landings();
    this.pending = []; // entries to be written when Frida has written its hooks
  }

  // Has calls of `target` go to `replacement`; where the original is goes to `setOriginal` before the first can come.
  // Throws where the function does not allow it.
  replace(target, replacement, setOriginal) {
    this.prepare(target, stub => stub.putJmpAddress(replacement), setOriginal)();
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
    return this.listen(target, (stub, original) => {
      for (const word of [tracked, followed]) {
        stub.putPushReg('r11'); // callers that were optimized together with the function may have something in any register
        stub.putMovRegAddress('r11', word);
        stub.putBytes([0x41, 0x83, 0x3b, 0x00]); // cmp dword [r11], 0
        stub.putPopReg('r11');
        stub.putJccShortLabel('jne', 'listened', 'no-hint');
      }
      stub.putJmpAddress(original);
      stub.putLabel('listened');
    });
  }

  // Has calls of `target` pass by the address that is returned, where a listener can be attached. From `flush` on: Frida writes
  // its jump in two stores. `before(stub, original)` writes what they pass by first. Throws as `replace` does.
  listen(target, before = () => {}) {
    let listened;
    const activate = this.prepare(target, (stub, original) => {
      before(stub, original);
      listened = stub.pc;
      stub.putNopPadding(FRIDA_JUMP_BYTES);
      stub.putJmpAddress(original);
    }, () => {});
    this.pending.push(activate);
    return listened;
  }

  // Frida has written its hooks. Throws where code cannot be written.
  flush() {
    for (const activate of this.pending.splice(0)) activate();
  }

  // Returns what leads the entry elsewhere.
  prepare(target, write, setOriginal) {
    if (Process.arch !== 'x64') throw new Error('x86-64 only');
    const stub = Memory.alloc(Process.pageSize, { near: target, maxDistance: 0x70000000 });
    this.stubs.push(stub);
    const original = stub.add(ORIGINAL_AT);
    let first = 0; // length of the first instruction. What is thrown inside of patchCode gets lost
    Memory.patchCode(stub, STUB_BYTES, code => {
      const entry = new X86Writer(code, { pc: stub });
      write(entry, original);
      entry.flush();
      const moved = new X86Writer(code.add(ORIGINAL_AT), { pc: original });
      const relocator = new X86Relocator(target, moved);
      first = relocator.readOne();
      if (first === 0) return;
      relocator.writeAll();
      if (!relocator.eoi) moved.putJmpAddress(target.add(first));
      moved.flush();
    });
    if (first === 0) throw new Error('the first instruction cannot be moved');
    const word = target.and(ptr(7).not()), offset = target.sub(word).toUInt32();
    const jump = this.jumpTo(stub, target, first).subarray(0, first);
    if (offset + jump.length > 8) throw new Error('the first instruction lies across two words');
    return () => {
      setOriginal(original);
      const bytes = new Uint8Array(word.readByteArray(8));
      bytes.set(jump, offset);
      if (!writeCode(word, [uint64(new BigUint64Array(bytes.buffer)[0].toString())])) throw new Error('the code cannot be written');
    };
  }

  // The bytes of a jump at `target` by which one comes to `stub`, with those that belong to instructions behind the first one,
  // which has `first` bytes, as they are. There are several: prefixes that mean nothing make it begin later.
  jumpTo(stub, target, first) {
    for (let prefixes = 0; prefixes === 0 || prefixes < Math.min(first, JUMP_BYTES); prefixes++) {
      const jump = new Uint8Array(prefixes + JUMP_BYTES), end = target.add(jump.length);
      jump.fill(CS_PREFIX, 0, prefixes);
      jump[prefixes] = 0xe9;
      const free = Math.min(first, jump.length) - prefixes - 1; // bytes of the displacement
      const displacement = new DataView(jump.buffer, prefixes + 1);
      let place = stub;
      if (free < 4) {
        jump.set(new Uint8Array(target.add(first).readByteArray(4 - free)), first);
        const lowest = end.add(displacement.getInt32(0, true));
        place = this.landings.reserve(lowest, lowest.add(Math.pow(2, 8 * free) - 1));
        const address = new Uint8Array(new BigUint64Array([BigInt(stub.toString())]).buffer);
        if (place === null || !writeBytes(place, [0xff, 0x25, 0, 0, 0, 0, ...address])) continue; // jmp [rip + 0]
      }
      displacement.setInt32(0, place.sub(end).toInt32(), true);
      return jump;
    }
    throw new Error('the jump would lead to memory of the program');
  }

  // Nobody comes by any more.
  dispose() {
    this.landings.dispose();
  }
}
