/*
 * DPDK's functions: which ones there are, what each does and where its arguments are, and where a module defines them.
 */

function product(a, b) {
  return uint64(a.toString()).toNumber() * uint64(b.toString()).toNumber();
}

// Every entry point that allocates, resizes or frees (DPDK lib/eal/include/rte_malloc.h, rte_memzone.h): what it does,
// its number in enum event_api, and where its arguments are.
const FUNCTIONS = {
  rte_malloc: { does: 'allocate', api: 1, type: 0, size: a => a[1] },
  rte_malloc_socket: { does: 'allocate', api: 2, type: 0, size: a => a[1], socket: 3 },
  rte_zmalloc: { does: 'allocate', api: 3, type: 0, size: a => a[1] },
  rte_zmalloc_socket: { does: 'allocate', api: 4, type: 0, size: a => a[1], socket: 3 },
  rte_calloc: { does: 'allocate', api: 5, type: 0, size: a => product(a[1], a[2]) },
  rte_calloc_socket: { does: 'allocate', api: 6, type: 0, size: a => product(a[1], a[2]), socket: 4 },
  rte_realloc: { does: 'resize', api: 7, size: a => a[1] },
  rte_realloc_socket: { does: 'resize', api: 8, size: a => a[1], socket: 3 },
  rte_free: { does: 'free', api: 9 },
  rte_free_sensitive: { does: 'free', api: 10 },
  rte_memzone_reserve: { does: 'reserve', api: 11, socket: 2 },
  rte_memzone_reserve_aligned: { does: 'reserve', api: 12, socket: 2 },
  rte_memzone_reserve_bounded: { does: 'reserve', api: 13, socket: 2 },
  rte_memzone_free: { does: 'unreserve', api: 14 },
  malloc_heap_alloc: { does: 'heap allocate', api: 15 },
  malloc_heap_free: { does: 'heap free', api: 16 },
  rte_eal_cleanup: { does: 'cleanup' },
  rte_eal_init: { does: 'init' },
};
const ALLOCATING = ['rte_malloc_socket', 'rte_malloc', 'rte_zmalloc_socket', 'rte_zmalloc']; // DPDK has rte_free and one of these

// Where a whole program was optimized at once (LTO), calls of the functions above are inlined or go to clones of them. What
// all of them come down to is hooked as well then, under whatever name the compiler gave it. Everything is listened to
// there, which leaves all registers as they were: callers know which ones the function itself leaves alone (-fipa-ra).
const BOTTOM = ['malloc_heap_alloc', 'malloc_heap_free'];
const CORE = /^(rte_(malloc|zmalloc|calloc|realloc)(_socket)?|rte_free|rte_memzone_reserve(_aligned|_bounded)?|rte_eal_(init|cleanup)|malloc_heap_(alloc|free))(\.|$)/;
const CLONE = /^(\w+)\.(constprop|isra|part|lto_priv|llvm)\b(?!.*\.cold)/;

// Finds DPDK's functions in a module that defines them itself. No dlsym here, neither ours nor Frida's: see native/exports.c.
class DpdkFunctions {
  // `symbols`: module path or name -> function -> offset, from a debug file or --symbol; `library`: --lib, or null.
  constructor(code, symbols, library) {
    this.symbols = symbols;
    this.library = library;
    this.names = new Map(); // function name -> C string
    this.wrong = []; // what is wrong with the given offsets, a sentence each
    this.symbolic = new Map(); // module path -> whether it has names that it does not export
    this.fileHasSymbols = code.native('file_has_symbols', 'int', ['pointer']);
    this.moduleExport = code.native('module_export', 'uint64', ['uint64', 'uint64', 'pointer']);
  }

  // The function's address, or null. What the host found in a debug file, or was told by --symbol, comes first. DPDK's own
  // shared libraries are spared the slow look into .symtab.
  find(module, name) {
    const given = (this.symbols[module.path] ?? this.symbols[module.name])?.[name];
    if (given !== undefined) return module.base.add(given);
    const exported = this.moduleExport(uint64(module.base.toString()), module.size, this.nameOf(name));
    if (!exported.equals(0)) return ptr(exported.toString());
    if (!this.hasSymbols(module)) return null;
    const address = module.findSymbolByName(name);
    const inside = address !== null && address.compare(module.base) >= 0 && address.compare(module.base.add(module.size)) < 0;
    return inside ? address : null;
  }

  hasSymbols(module) {
    if (isDpdksOwn(module)) return false;
    if (!this.symbolic.has(module.path))
      this.symbolic.set(module.path, this.fileHasSymbols(Memory.allocUtf8String(module.path)) !== 0);
    return this.symbolic.get(module.path);
  }

  nameOf(name) {
    if (!this.names.has(name)) this.names.set(name, Memory.allocUtf8String(name));
    return this.names.get(name);
  }

  // Offsets that lead to no code of the module are not used, and said.
  checkGiven(module) {
    for (const symbols of [this.symbols[module.path], this.symbols[module.name]]) {
      for (const [name, offset] of Object.entries(symbols ?? {})) {
        const address = module.base.add(offset);
        const inside = offset < module.size && (Process.findRangeByAddress(address)?.protection ?? '').includes('x');
        if (inside) continue;
        delete symbols[name];
        this.wrong.push(`--symbol ${name}=${module.name}+0x${offset.toString(16)} leads to no code of that module, which has `
          + `0x${module.size.toString(16)} bytes.`);
      }
    }
  }

  // Whether DPDK's allocation functions are in this module, and it is the one that is wanted.
  areIn(module) {
    this.checkGiven(module);
    if (this.library !== null && !isNamed(module, this.library)) return false;
    return this.find(module, 'rte_free') !== null && ALLOCATING.some(name => this.find(module, name) !== null);
  }

  // [name, address] of each function to be hooked, once an address; `optimized`: together with its callers.
  toBeHooked(module) {
    const { functions, optimized } = this.all(module);
    const taken = new Set();
    return { optimized, functions: functions.filter(([, address]) => {
      const known = address === null || taken.has(address.toString()); // absent in this version, or another name of one
      if (!known) taken.add(address.toString());
      return !known;
    }) };
  }

  all(module) {
    const exact = Object.keys(FUNCTIONS).filter(name => !BOTTOM.includes(name)).map(name => [name, this.find(module, name)]);
    if (!this.hasSymbols(module)) return { functions: exact, optimized: false };
    const symbols = module.enumerateSymbols().filter(({ name, type }) => type === 'function' && CORE.test(name));
    if (symbols.every(({ name, isGlobal }) => isGlobal && !CLONE.test(name) || BOTTOM.includes(name)))
      return { functions: exact, optimized: false };
    const clones = name => symbols.filter(symbol => symbol.name === name || symbol.name.match(CLONE)?.[1] === name);
    const bottom = BOTTOM.flatMap(name => clones(name).map(({ address }) => [name, address]));
    for (const name of ['rte_eal_init', 'rte_eal_cleanup']) exact.push([name, clones(name)[0]?.address ?? null]);
    if (new Set(bottom.map(([name]) => name)).size < BOTTOM.length)
      send({ type: 'error', text: `${module.name}: DPDK's functions were inlined (LTO), and malloc_heap_alloc and malloc_heap_free `
        + 'are not there to be hooked instead: calls will be missed.' });
    return { functions: [...exact, ...bottom], optimized: true };
  }
}

function isDpdksOwn(module) {
  return module.name.startsWith('librte_');
}

function isNamed(module, library) {
  return module.name === library || module.path === library || module.name.startsWith(library + '.');
}
