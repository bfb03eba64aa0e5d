"""The launch files: valid, agreed with themselves, and what they do."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
SCRIPTS = sorted([*LAUNCH.rglob('*.sh'), *LAUNCH.rglob('*.sbatch')])


def test_every_launcher_has_its_page():
  folders = [path for path in LAUNCH.iterdir() if path.is_dir()]
  assert {f.name for f in folders} == {'slurm', 'kubernetes', 'tpu'}
  for folder in folders:
    page = (folder / 'README.md').read_text(encoding='utf-8')
    for file in folder.iterdir():
      assert file.name in page or file.name == 'README.md', file


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
  subprocess.run(['bash', '-n', script], check=True)
  assert os.access(script, os.X_OK)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_the_linter(script):
  linter = shutil.which('shellcheck')
  if linter is None:
    pytest.skip('shellcheck is not installed')
  found = subprocess.run(
    [linter, '--shell=bash', script], capture_output=True, text=True
  )
  assert not found.returncode, found.stdout


def documents():
  yaml = pytest.importorskip('yaml', reason='no YAML library is installed')
  text = (LAUNCH / 'kubernetes' / 'job.yaml').read_text(encoding='utf-8')
  return {found['kind']: found for found in yaml.safe_load_all(text)}


def flags(container):
  """Flags by name, without values that are flags themselves."""
  return dict(
    argument.removeprefix('--').partition('=')[::2]
    for argument in container['args']
  )


def test_pods_find_one_another():
  found = documents()
  service, job = found['Service'], found['Job']
  spec, pod = job['spec'], job['spec']['template']['spec']
  [container] = pod['containers']
  given = flags(container)
  name, subdomain = job['metadata']['name'], service['metadata']['name']
  assert spec['completionMode'] == 'Indexed'
  count = int(given['processes'])
  assert spec['completions'] == spec['parallelism'] == count > 1
  assert service['spec']['clusterIP'] == 'None'
  assert service['spec']['publishNotReadyAddresses'] is True
  assert service['spec']['selector'] == {'job-name': name}
  assert pod['subdomain'] == subdomain
  host, port = given['coordinator'].split(':')
  assert host == f'{name}-0.{subdomain}'
  assert {'containerPort': int(port)} in container['ports']
  [index] = container['env']
  assert given['process_id'] == f'$({index["name"]})'
  annotation = index['valueFrom']['fieldRef']['fieldPath']
  assert annotation == (
    "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  )


def test_pods_are_made_anew_when_it_helps():
  spec = documents()['Job']['spec']
  pod = spec['template']['spec']
  # The API accepts a failure policy with this restart policy only.
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] >= 60
  [container] = pod['containers']
  rules = spec['podFailurePolicy']['rules']
  assert rules[0]['onPodConditions'] == [{'type': 'DisruptionTarget'}]
  [before] = pod['initContainers']
  codes = {
    (rule['onExitCodes']['containerName'], value): rule['action']
    for rule in rules[1:]
    for value in rule['onExitCodes']['values']
  }
  assert codes == {
    (container['name'], 75): 'Ignore',
    (container['name'], 1): 'FailJob',
    (before['name'], 1): 'FailJob',
  }
  assert flags(container)['stop_code'] == '75'


def test_pods_share_a_disk_and_look_first():
  pod = documents()['Job']['spec']['template']['spec']
  [container], [before] = pod['containers'], pod['initContainers']
  volumes = {v['name']: v for v in pod['volumes']}
  mounts = {m['mountPath']: m['name'] for m in container['volumeMounts']}
  assert 'persistentVolumeClaim' in volumes[mounts['/shared']]
  given = flags(container)
  assert given['workdir'].startswith('/shared/')
  assert any(
    argument.startswith('--set=data.directory=/shared/')
    for argument in container['args']
  )
  assert 'dry_run' in flags(before)
  assert before['image'] == container['image']
  assert flags(before)['config'] == given['config']
  gpus = container['resources']['limits']['nvidia.com/gpu']
  assert int(flags(before)['devices']) == gpus * int(given['processes'])


def fake(folder, name, text):
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path):
  """Commands of a cluster that only write down how they were called."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in ('srun', 'scontrol', 'scancel', 'gcloud', 'git', 'python'):
    fake(folder, name, f'echo {name} "$@" >>"$CALLS"')
  fake(folder, 'squeue', 'echo "${STATE:-RUNNING}"')
  return folder


def launch(bin_folder, script, *arguments, **environment):
  """Starts a script where only the fakes and the system's tools are found."""
  return subprocess.Popen(
    ['bash', LAUNCH / script, *arguments],
    env={
      'PATH': f'{bin_folder}:/usr/bin:/bin',
      'CALLS': str(bin_folder / 'calls'),
      'PYTHON': 'python',
    }
    | environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def calls(bin_folder):
  return (bin_folder / 'calls').read_text().splitlines()


SLURM = {'SLURM_NTASKS': '16', 'SLURM_JOB_ID': '7'}
TRAIN = ('train.py', '--config=x')


def test_slurm_looks_first_and_then_runs(bin_folder):
  assert launch(bin_folder, 'slurm/job.sbatch', *TRAIN, **SLURM).wait(300) == 0
  before, run = calls(bin_folder)
  assert before == (
    'python train.py --config=x --dry_run --devices=16 --chip=H100'
  )
  assert run == (
    'srun --kill-on-bad-exit=1 python train.py --config=x --stop_code=75'
  )


def test_slurm_runs_other_commands_as_they_are(bin_folder):
  job = launch(bin_folder, 'slurm/job.sbatch', 'eval.py', '--a=b c', **SLURM)
  assert job.wait(300) == 0
  assert calls(bin_folder) == [
    'srun --kill-on-bad-exit=1 python eval.py --a=b c'
  ]


@pytest.mark.parametrize(
  ('code', 'restarts', 'again'),
  [(75, 0, True), (137, 3, True), (75, 20, False), (1, 0, False)],
)
def test_slurm_queues_again_what_may_go_on(bin_folder, code, restarts, again):
  fake(bin_folder, 'srun', f'exit {code}')
  job = launch(
    bin_folder, 'slurm/job.sbatch', *TRAIN, **SLURM,
    SLURM_RESTART_COUNT=str(restarts),
  )  # fmt: skip
  assert job.wait(300) == code
  assert ('scontrol requeue 7' in calls(bin_folder)) == again


def test_slurm_does_not_queue_again_what_was_cancelled(bin_folder):
  """Its processes save and leave as ever, but Slurm says what it has done."""
  fake(bin_folder, 'srun', 'exit 75')
  for state in ('COMPLETING', 'CANCELLED', ''):
    fake(bin_folder, 'squeue', f'echo {state}')
    job = launch(bin_folder, 'slurm/job.sbatch', *TRAIN, **SLURM)
    assert job.wait(300) == 75
  assert not [x for x in calls(bin_folder) if x.startswith('scontrol')]


def test_slurm_starts_nothing_that_does_not_fit(bin_folder):
  fake(bin_folder, 'python', 'exit 1')
  job = launch(bin_folder, 'slurm/job.sbatch', *TRAIN, **SLURM)
  assert job.wait(300) == 1
  assert not (bin_folder / 'calls').exists()


def test_slurm_lets_the_run_save_when_time_is_up(bin_folder):
  # The step ends some time after it was told to, not with the batch script.
  fake(
    bin_folder, 'srun',
    'trap "sleep 0.2; echo saved >>\\"$CALLS\\"; exit 75" TERM\n'
    'echo $$ >"$CALLS.new"; mv "$CALLS.new" "$CALLS.pid"\n'
    'while :; do sleep 0.05; done',
  )  # fmt: skip
  fake(
    bin_folder, 'scancel',
    'echo scancel "$@" >>"$CALLS"; kill -TERM "$(cat "$CALLS.pid")"',
  )  # fmt: skip
  job = launch(bin_folder, 'slurm/job.sbatch', *TRAIN, **SLURM)
  while not (bin_folder / 'calls.pid').exists():
    assert job.poll() is None
    time.sleep(0.05)
  job.send_signal(signal.SIGTERM)
  assert job.wait(300) == 75
  assert calls(bin_folder)[1:] == [
    'scancel --signal=TERM 7', 'saved', 'scontrol requeue 7'
  ]  # fmt: skip


TPU = {'TPU': 'pod', 'ZONE': 'z', 'TYPE': 'v5p-32', 'PAUSE': '0'}


def test_tpu_makes_the_vm_anew_after_a_preemption(bin_folder):
  """The command fails once, and then there is no VM any more."""
  fake(
    bin_folder, 'gcloud',
    'words=$*; echo "$4 ${words//$\'\\n\'/ }" >>"$CALLS"\n'
    'case "$4 $*" in\n'
    'describe*) [[ -e $CALLS.gone ]] || echo READY;;\n'
    '*train.py*) [[ -e $CALLS.gone ]] || { touch "$CALLS.gone"; exit 1; };;\n'
    'esac',
  )  # fmt: skip
  job = launch(bin_folder, 'tpu/run.sh', *TRAIN, '--set', 'a=b c', **TPU)
  assert job.wait(300) == 0, job.stderr.read()
  made = [line.split()[0] for line in calls(bin_folder)]
  assert made == [
    'python', 'describe', 'ssh', 'ssh', 'describe', 'delete', 'create', 'git',
    'scp', 'ssh', 'ssh', 'ssh', 'ssh',
  ]  # fmt: skip
  first, last = calls(bin_folder)[3], calls(bin_folder)[-1]
  assert first == last
  for words in (
    '--worker=all', '--set a=b\\ c --stop_code=75 --coordinator=auto',
  ):  # fmt: skip
    assert words in last


# A VM that is there from `create` to `delete`, whose installation fails once.
CLOUD = r"""
echo "$4" >>"$CALLS"
case "$4 $*" in
create*) touch "$CALLS.vm";;
delete*) rm -f "$CALLS.vm" "$CALLS.marked";;
describe*) [[ -e $CALLS.vm ]] && echo READY;;
*'touch installed'*) touch "$CALLS.marked";;
*'test -e installed'*) [[ -e $CALLS.marked ]];;
*"$FAILS"*) [[ -e $CALLS.failed ]] || { touch "$CALLS.failed"; exit 1; };;
*train.py*) [[ -e $CALLS.marked ]];;
esac
"""


@pytest.mark.parametrize('step', ['scp', 'apt-get', 'mount-it', 'nothing'])
@pytest.mark.parametrize('left', [False, True])
def test_tpu_installs_a_vm_until_it_is_done(bin_folder, step, left):
  """Also one that is there and was left as it was before it was installed."""
  fake(bin_folder, 'gcloud', CLOUD)
  if left:
    (bin_folder / 'calls.vm').touch()
  job = launch(
    bin_folder, 'tpu/run.sh', *TRAIN, **TPU, RESTARTS='1', SETUP='mount-it',
    FAILS=step,
  )  # fmt: skip
  assert job.wait(300) == 0, job.stderr.read()
  assert calls(bin_folder).count('create') == (1 if step == 'nothing' else 2)


def test_tpu_leaves_no_vm_that_cannot_be_installed(bin_folder):
  fake(bin_folder, 'gcloud', CLOUD.replace('[[ -e $CALLS.failed ]] ||', ''))
  job = launch(
    bin_folder, 'tpu/run.sh', *TRAIN, **TPU, RESTARTS='1', FAILS='apt-get'
  )
  assert job.wait(300) == 1
  assert not (bin_folder / 'calls.vm').exists()


def test_tpu_gives_up(bin_folder):
  fake(bin_folder, 'gcloud', 'exit 1')
  job = launch(bin_folder, 'tpu/run.sh', *TRAIN, **TPU, RESTARTS='1')
  assert job.wait(300) == 1
  assert 'attempt 2 of 2' in job.stderr.read()
