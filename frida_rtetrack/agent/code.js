/*
 * The C of native/ in this process: compiled ahead by the system's compiler where the host has it for this machine, else
 * compiled here and now by Frida's TinyCC, from the same source.
 */

// What the C keeps between calls, each on pages of its own. `wiped`: a forked child reads zeros, and so is not tracked.
const STATES = {
  agent: { wiped: true }, sigmark: {}, faults: {}, sigactions: {}, originals: {}, fork_follow: {}, call_layout: {}, exits: {}, execs: {},
  forking: {},
};

const IMPORTS = ['syscall', 'sigaction', 'fopencookie', 'fclose', 'setvbuf', '__errno_location'];

class Code {
  // `compiled`: an ELF shared object as an ArrayBuffer, or null: then `source` is the C text.
  constructor(source, compiled) {
    this.imports = {};
    for (const name of IMPORTS) this.imports[name] = Module.getGlobalExportByName(name);
    this.pages = [];
    if (compiled === null) this.compile(source);
    else this.load(compiled);
  }

  load(elf) {
    this.module = new CModule(elf, this.imports);
    for (const [name, { wiped }] of Object.entries(STATES)) {
      if (this.module[name] !== undefined) adviseState(this.module[name], wiped);
    }
    this.builtBy = this.native('engine_built_by', 'pointer', [])().readUtf8String();
  }

  compile(source) {
    const states = {};
    for (const [name, { wiped }] of Object.entries(STATES)) {
      states[name] = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, []);
      adviseState(states[name], wiped);
      this.pages.push(states[name]);
    }
    this.module = new CModule(source, { ...this.imports, ...states });
    Object.assign(this, { states, builtBy: 'TinyCC' });
  }

  // A function of the C source.
  native(name, result, args) {
    return new NativeFunction(this.module[name], result, args);
  }

  // Where the function `name` is, as a hook or a listener.
  address(name) {
    return this.module[name];
  }

  state(name) {
    return this.states === undefined ? this.module[name] : this.states[name];
  }

  // Nobody may be inside of it any more.
  dispose() {
    this.module.dispose();
    this.pages.forEach(page => unmap(page, Process.pageSize));
  }
}

function adviseState(page, wiped) {
  system.madvise(page, Process.pageSize, MADV_DONTDUMP);
  if (wiped && system.madvise(page, Process.pageSize, MADV_WIPEONFORK).value !== 0)
    throw new Error('the kernel does not wipe memory in forked children (MADV_WIPEONFORK, Linux 4.14)');
}
