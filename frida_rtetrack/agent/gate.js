/*
 * The gate that keeps the program out of the dynamic linker and of fork while Frida leaves (target/arrival/loadergate.py), closed by
 * the agent itself where the host is gone and cannot. The stand-in opens it again after some seconds.
 */

const GATE_ROUNDS = 3, GATE_PAUSE_S = 0.004, GATE_LOCKS_S = 2, STANDIN_GONE = 3;

class Gate {
  // `told`: addresses of what stands in the region, and the words through which modules call: [word, gate, what it may say
  // while the gate is open...] each. Null where there is no stand-in.
  constructor(told) {
    this.told = told;
  }

  close() {
    if (this.told === null) return;
    const [closed, state, ask, asked] = ['closed', 'state', 'ask', 'asked'].map(name => ptr(this.told[name]));
    if (state.readU32() === STANDIN_GONE) return; // nobody would open it
    const memory = libc('open', 'int', ['pointer', 'int'])(Memory.allocUtf8String('/proc/self/mem'), 0x80002).value; // O_RDWR | O_CLOEXEC
    if (memory < 0) return;
    closed.writeU32(1);
    for (const [word, gate, ...open] of this.told.words.map(addresses => addresses.map(ptr))) this.lead(memory, word, gate, open);
    system.close(memory);
    for (let round = 0; round < GATE_ROUNDS; round++) {
      Thread.sleep(GATE_PAUSE_S);
      const number = asked.readU32() + 1;
      ask.writeU32(number);
      for (let waited = 0; asked.readU32() !== number && waited < GATE_LOCKS_S; waited += 0.001) Thread.sleep(0.001);
    }
  }

  // Only a word that says what it said: its module may have been unloaded since.
  lead(memory, word, gate, open) {
    try {
      const now = word.readPointer();
      if (!open.some(address => now.equals(address))) return;
    } catch (_) {
      return;
    }
    const bytes = Memory.alloc(8);
    bytes.writePointer(gate);
    libc('pwrite', 'ssize_t', ['int', 'pointer', 'size_t', 'int64'])(memory, bytes, 8, int64(word.toString()));
  }
}
