/*
 * The native engine (x86-64 Linux): DPDK's functions are redirected to the C of native/hooks.c, which has an unwinder of
 * its own. Where a function cannot be redirected it is listened to, by C as well.
 */

// The order of struct originals in native/hooks.c.
const ORIGINALS = [
  'rte_malloc', 'rte_malloc_socket', 'rte_zmalloc', 'rte_zmalloc_socket', 'rte_calloc', 'rte_calloc_socket', 'rte_realloc',
  'rte_realloc_socket', 'rte_free', 'rte_free_sensitive', 'rte_memzone_reserve', 'rte_memzone_reserve_aligned',
  'rte_memzone_reserve_bounded', 'rte_memzone_free', 'rte_eal_cleanup', 'rte_eal_init',
];

// Where a call's registers lie in what Frida hands to a listener: its own headers say.
const CALL_LAYOUT_SOURCE = `
#include <gum/guminterceptor.h>
unsigned long registers(void) { return offsetof(GumInvocationContext, cpu_context); }
unsigned long sp(void) { return offsetof(GumCpuContext, rsp); }
unsigned long bp(void) { return offsetof(GumCpuContext, rbp); }
`;

class NativeEngine {
  constructor(session) {
    this.name = 'native';
    this.code = session.code;
    this.ways = session.options.hookWays;
    this.replaced = []; // addresses
    this.listeners = [];
    this.redirects = session.redirects;
    this.stubs = []; // keeps the near jumps' memory alive
    this.addModule = this.code.native('unwind_add_module', 'int', ['pointer', 'uint64', 'uint64']);
    this.removeModule = this.code.native('unwind_remove_module', 'void', ['pointer', 'uint64']);
    this.unwinderBytes = this.code.native('unwind_state_bytes', 'uint64', [])().toNumber();
    this.unwinder = map(this.unwinderBytes, MAP_PRIVATE_ANONYMOUS, -1, session.ours);
    this.code.native('agent_use_unwinder', 'void', ['pointer'])(this.unwinder);
    this.code.native('hooks_start', 'void', [])();
    this.originals = this.code.state('originals');
    this.uncounted = this.code.native('hooks_uncounted', 'uint64', []);
  }

  onModuleAdded(module) {
    this.addModule(this.unwinder, uint64(module.base.toString()), module.size);
  }

  onModuleRemoved(module) {
    this.removeModule(this.unwinder, uint64(module.base.toString()));
  }

  // Our own redirect first: no thread can be in the middle of what it overwrites. It fits where the ordinary one of 16 bytes
  // does not (rte_free is 10 bytes long), too, as Frida's of 5 bytes does.
  hook(name, address, optimized) {
    const { api } = FUNCTIONS[name];
    const replacement = this.code.address('hook_' + name);
    const setOriginal = original => this.originals.add(8 * ORIGINALS.indexOf(name)).writePointer(original);
    const throughFrida = how => {
      setOriginal(Interceptor.replaceFast(how, replacement)); // takes effect at the next flush
      this.replaced.push(address);
    };
    const ways = [
      ['near', () => this.redirects.replace(address, replacement, setOriginal)],
      ['near', () => throughFrida(this.nearRedirect(address, replacement))],
      ['far', () => throughFrida(address)],
    ];
    for (const [how, replace] of ways.filter(([how]) => !optimized && this.ways.includes(how))) {
      try {
        replace();
      } catch (_) {
        continue;
      }
      return how;
    }
    if (name === 'rte_eal_cleanup') { // its return must stay untouched: what it frees is unwound through it
      this.attach(address, { onEnter: this.code.address('cleanup_started') });
      return 'attach';
    }
    return api === undefined ? null : this.listen(address, api);
  }

  listen(address, api) {
    if (!this.layoutKnown) this.learnCallLayout();
    this.attach(address, { onEnter: this.code.address('listener_enter'), onLeave: this.code.address('listener_leave') }, ptr(api));
    return 'attach';
  }

  attach(address, callbacks, data) {
    let where = address;
    try {
      where = this.redirects.listen(address);
    } catch (_) {} // at its entry, then
    this.listeners.push(Interceptor.attach(where, callbacks, data));
  }

  learnCallLayout() {
    const headers = new CModule(CALL_LAYOUT_SOURCE);
    ['registers', 'sp', 'bp'].forEach((name, i) =>
      this.code.state('call_layout').add(8 * i).writeU64(new NativeFunction(headers[name], 'ulong', [])()));
    headers.dispose();
    this.layoutKnown = true;
  }

  nearRedirect(target, replacement) {
    const stub = Memory.alloc(Process.pageSize, { near: target, maxDistance: 0x70000000 });
    this.stubs.push(stub);
    return {
      target,
      redirectSpaceHint: 5,
      writeRedirect({ writer }) {
        Memory.patchCode(stub, 16, code => {
          const jump = new X86Writer(code, { pc: stub });
          jump.putJmpAddress(replacement);
          jump.flush();
        });
        writer.putJmpAddress(stub);
      },
    };
  }

  silence() {}

  unhook() {
    this.listeners.forEach(listener => listener.detach());
    this.replaced.forEach(address => Interceptor.revert(address));
  }

  threadsInside() {
    return this.uncounted().toNumber();
  }

  stop() {
    this.code.native('hooks_stop', 'void', [])();
    unmap(this.unwinder, this.unwinderBytes);
  }
}
