/* Hooking and unhooking, as far as the bytes at a function's entry go. */

const ENTRY_BYTES = 16; // the longest redirect that Frida writes on x86-64 and arm64
const UNHOOK_LOOK_S = 0.01;
const UNHOOK_GRACE_S = 0.1; // for a thread between a hooked function's entry and the hook

// The first bytes of every hooked function. Frida frees a trampoline as soon as it has taken the hook out, and counts only
// the threads that are beyond the trampoline's first instructions: one that is held up right there then runs into freed
// memory. So the functions get their own bytes back first, and Frida takes its hooks out once everybody has moved on.
class Entries {
  constructor() {
    this.bytes = new Map(); // address -> its first 16 bytes, before the hook
  }

  save(address) {
    this.bytes.set(address.toString(), address.readByteArray(ENTRY_BYTES));
  }

  forget(module) {
    for (const address of this.bytes.keys()) {
      if (ptr(address).compare(module.base) >= 0 && ptr(address).compare(module.base.add(module.size)) < 0)
        this.bytes.delete(address);
    }
  }

  // Until it has lasted: Frida was seen to write its jumps anew, from a program's thread that left a JavaScript callback.
  restore() {
    if (Process.arch !== 'x64') return; // elsewhere the instruction cache would have to be told
    const deadline = Date.now() + 2000;
    for (let quiet = 0; quiet < UNHOOK_GRACE_S && Date.now() < deadline; quiet += UNHOOK_LOOK_S) {
      if (this.restoreOnce()) quiet = 0;
      Thread.sleep(UNHOOK_LOOK_S);
    }
  }

  // Returns how many were not as they should be.
  restoreOnce() {
    let changed = 0;
    for (const [address, bytes] of this.bytes) {
      try {
        changed += this.restoreEntry(ptr(address), Array.from(new BigUint64Array(bytes), word => uint64(word.toString())));
      } catch (_) {
        this.bytes.delete(address); // its module is gone
      }
    }
    return changed;
  }

  restoreEntry(entry, words) {
    if (words.every((word, i) => entry.add(8 * i).readU64().equals(word))) return 0;
    return writeCode(entry, words); // if not, Frida's own way remains
  }
}

// A hook cannot be taken out of memory that is gone: a library that is hooked after the start is not unloaded any more.
function keepLoaded(module) {
  const LAZY_NOLOAD_NODELETE = 0x1005;
  libc('dlopen', 'pointer', ['pointer', 'int'])(Memory.allocUtf8String(module.path), LAZY_NOLOAD_NODELETE);
}
