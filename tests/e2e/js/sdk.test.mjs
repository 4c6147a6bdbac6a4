// The stock JavaScript SDK against a real server. OPENE2B_JS_CLIENT chooses which: `e2b` or `e2b-oldest`.
import assert from 'node:assert/strict'
import { test, before, after } from 'node:test'

const { Sandbox } = await import(process.env.OPENE2B_JS_CLIENT ?? 'e2b')
let sandbox

before(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { client: 'js' } })
})
after(async () => {
  await sandbox?.kill()
})

test('a command answers with its output and exit code', async () => {
  const result = await sandbox.commands.run('echo out; echo err >&2')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
})

test('a failing command throws with its exit code', async () => {
  await assert.rejects(sandbox.commands.run('exit 5'), (error) => error.exitCode === 5)
})

test('output is streamed while the command runs', async () => {
  const seen = []
  await sandbox.commands.run('echo 1; sleep 0.4; echo 2', {
    onStdout: (text) => { seen.push([text, Date.now()]) },
  })
  assert.deepEqual(seen.map(([text]) => text), ['1\n', '2\n'])
  assert.ok(seen[1][1] - seen[0][1] > 200)
})

test('a background command takes input and is killed', async () => {
  let output = ''
  const handle = await sandbox.commands.run('cat', {
    background: true, stdin: true, onStdout: (text) => { output += text },
  })
  await sandbox.commands.sendStdin(handle.pid, 'typed\n')
  while (!output) await new Promise((resolve) => setTimeout(resolve, 10))
  assert.equal(output, 'typed\n')
  assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
  assert.equal(await handle.kill(), true)
  assert.equal(await sandbox.commands.kill(handle.pid), false)
})

test('files are written, read, listed, renamed and removed', async () => {
  await sandbox.files.write('js/hello.txt', 'hello')
  assert.equal(await sandbox.files.read('js/hello.txt'), 'hello')
  assert.deepEqual((await sandbox.files.list('js')).map((entry) => entry.name), ['hello.txt'])
  await sandbox.files.rename('js/hello.txt', 'js/other.txt')
  assert.equal(await sandbox.files.exists('js/hello.txt'), false)
  const bytes = Uint8Array.from({ length: 100_000 }, (_, index) => index % 256)
  await sandbox.files.write('js/bytes', bytes.buffer)
  assert.deepEqual(await sandbox.files.read('js/bytes', { format: 'bytes' }), bytes)
  await sandbox.files.remove('js')
  assert.equal(await sandbox.files.exists('js'), false)
  assert.equal(await sandbox.files.makeDir('made'), true)
  assert.equal(await sandbox.files.makeDir('made'), false)
})

test('a watched directory calls back', async () => {
  await sandbox.files.makeDir('watched')
  const seen = []
  let came
  const last = new Promise((resolve) => (came = resolve))
  const handle = await sandbox.files.watchDir('watched', (event) => {
    seen.push(`${event.name} ${event.type}`)
    if (event.name === 'last') came()
  })
  await sandbox.files.write('watched/first', '1')
  await sandbox.files.write('watched/last', '1')
  await last
  await handle.stop()
  assert.equal(seen[0], 'first create')
  assert.ok(seen.includes('first write'))
})

test('a terminal runs a shell and is resized', async () => {
  let output = ''
  const terminal = await sandbox.pty.create({
    cols: 80, rows: 24, onData: (data) => { output += new TextDecoder().decode(data) },
  })
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 40 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await terminal.wait()
  assert.match(output, /40 100/)
})

test('input is closed, commands are connected to', async () => {
  const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
  const other = await sandbox.commands.connect(handle.pid)
  await sandbox.commands.sendStdin(handle.pid, 'typed')
  if (sandbox.commands.closeStdin) await sandbox.commands.closeStdin(handle.pid)
  else await handle.kill()
  const ends = await Promise.allSettled([handle.wait(), other.wait()])
  if (sandbox.commands.closeStdin) {
    assert.deepEqual(ends.map((end) => end.value?.stdout), ['typed', 'typed'])
  }
})

test('a command that takes too long is ended', async () => {
  await assert.rejects(
    sandbox.commands.run('sleep 20', { timeoutMs: 300 }),
    (error) => error.name === 'TimeoutError',
  )
})

test('files are read as text, bytes, blob and stream, and described', async () => {
  await sandbox.files.write('forms', 'h\u00e4y')
  assert.equal(await (await sandbox.files.read('forms', { format: 'blob' })).text(), 'h\u00e4y')
  const parts = []
  for await (const part of await sandbox.files.read('forms', { format: 'stream' })) parts.push(part)
  assert.equal(Buffer.concat(parts).toString(), 'h\u00e4y')
  const info = await sandbox.files.getInfo('forms')
  assert.deepEqual([info.size, info.owner, info.permissions], [4, 'user', '-rw-r--r--'])
  await sandbox.files.write([{ path: 'many1', data: '1' }, { path: 'many2', data: '2' }])
  assert.equal(await sandbox.files.read('many2'), '2')
  await assert.rejects(sandbox.files.read('none'), (error) => /NotFound/.test(error.name))
  await assert.rejects(sandbox.files.read('/etc'), (error) => error.name === 'InvalidArgumentError')
})

test('a terminal is connected to and killed', async () => {
  const shell = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
  const other = await sandbox.pty.connect(shell.pid, { onData: () => {} })
  assert.equal(await sandbox.pty.kill(shell.pid), true)
  const ends = await Promise.allSettled([shell.wait(), other.wait()])
  assert.deepEqual(ends.map((end) => end.reason?.exitCode), [-1, -1])
})

test('git works', async () => {
  const git = sandbox.git
  const home = (await sandbox.commands.run('pwd')).stdout.trim()
  await git.init(`${home}/origin.git`, { bare: true, initialBranch: 'main' })
  await git.init(`${home}/repository`, { initialBranch: 'main' })
  await git.configureUser('Somebody', 's@example.com')
  assert.equal(await git.getConfig('user.name'), 'Somebody')
  await sandbox.files.write(`${home}/repository/f`, 'one')
  assert.equal((await git.status(`${home}/repository`)).hasChanges, true)
  await git.add(`${home}/repository`)
  await git.commit(`${home}/repository`, 'first')
  await git.remoteAdd(`${home}/repository`, 'origin', `${home}/origin.git`)
  await git.push(`${home}/repository`, { remote: 'origin', branch: 'main' })
  await git.createBranch(`${home}/repository`, 'other')
  await git.checkoutBranch(`${home}/repository`, 'main')
  await git.deleteBranch(`${home}/repository`, 'other')
  assert.deepEqual((await git.branches(`${home}/repository`)).branches, ['main'])
  await git.clone(`${home}/origin.git`, { path: `${home}/copy` })
  await git.pull(`${home}/copy`, { remote: 'origin', branch: 'main' })
  assert.equal(await sandbox.files.read(`${home}/copy/f`), 'one')
})

test('a running sandbox is connected, listed and described', async () => {
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await again.commands.run('echo same')).stdout, 'same\n')
  const found = await Sandbox.list({ query: { metadata: { client: 'js' } } }).nextItems()
  assert.deepEqual(found.map((item) => item.sandboxId), [sandbox.sandboxId])
  await sandbox.setTimeout(60_000)
  const info = await Sandbox.getInfo(sandbox.sandboxId)
  assert.equal(info.sandboxId, sandbox.sandboxId)
})

test('a server in the sandbox is reached through the proxy', async () => {
  await sandbox.commands.run('python3 -m http.server 8123 --bind 127.0.0.1', { background: true })
  await sandbox.commands.run('for i in $(seq 50); do curl -sf 127.0.0.1:8123 >/dev/null && break; sleep 0.1; done')
  const response = await fetch(process.env.E2B_SANDBOX_URL, {
    headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8123' },
  })
  assert.equal(response.status, 200)
  assert.match(await response.text(), /Directory listing/)
})

test('a sandbox is paused and goes on where it stood', async () => {
  const paused = await Sandbox.create({ timeoutMs: 60_000 })
  await paused.commands.run('echo kept > /dev/shm/kept')
  await (paused.pause ?? paused.betaPause).call(paused)
  assert.equal((await paused.getInfo()).state, 'paused')
  const again = await Sandbox.connect(paused.sandboxId, { timeoutMs: 60_000 })
  assert.equal((await again.commands.run('cat /dev/shm/kept')).stdout, 'kept\n')
  assert.equal((await again.getInfo()).state, 'running')
  await again.kill()
})

test('a killed sandbox is gone', async () => {
  const other = await Sandbox.create({ timeoutMs: 60_000 })
  assert.equal(await other.isRunning(), true)
  // Older clients answer nothing here.
  assert.notEqual(await other.kill(), false)
  assert.equal(await Sandbox.kill(other.sandboxId), false)
  assert.equal(await other.isRunning(), false)
})

test('an unknown sandbox and a wrong key are refused', async () => {
  await assert.rejects(Sandbox.connect('i00000000000000000000'))
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + 'f'.repeat(40) }))
})
