{{/*
The worker groups as a YAML list, defaults filled in and checked against `config`. All templates read them here.
A group holds the keys of `prefillWorkers`, and name, role, hosts (pods per worker), gpusPerPod, numCpus.
*/}}
{{- define "baton.groups" -}}
{{- $root := . -}}
{{- $defaults := .Files.Get "files/group-defaults.yaml" | fromYaml -}}
{{- $given := list -}}
{{- range $role := list "prefill" "decode" "colocated" -}}
{{- $own := deepCopy (index $root.Values (printf "%sWorkers" $role)) -}}
{{- $given = append $given (mergeOverwrite (deepCopy $defaults) $own (dict "name" $role "role" $role)) -}}
{{- end -}}
{{- range .Values.extraWorkerGroups -}}
{{- $given = append $given (mergeOverwrite (deepCopy $defaults) (deepCopy .)) -}}
{{- end -}}
{{- $extra := dict -}}
{{- range .Values.extraWorkerGroups -}}
{{- $_ := set $extra .role (add (int (default 0 (get $extra .role))) (int (default 0 .replicas))) -}}
{{- end -}}
{{- $groups := list -}}
{{- $names := dict -}}
{{- $sums := dict -}}
{{- range $group := $given -}}
{{- $where := printf "worker group %s" $group.name -}}
{{- if hasKey $names $group.name -}}
{{- fail (printf "%s: two groups have this name; prefill, decode and colocated are taken, extra groups need others" $where) -}}
{{- end -}}
{{- $_ := set $names $group.name true -}}
{{- $pool := get $root.Values.config.pools $group.role | default dict -}}
{{- if and $pool (kindIs "invalid" $pool.replicas) -}}
{{- fail (printf "config.pools.%s.replicas is null; give the number of workers, since it has no default" $group.role) -}}
{{- end -}}
{{- $replicas := $group.replicas -}}
{{- if kindIs "invalid" $replicas -}}
{{- $replicas = sub (add (int (default 0 $pool.replicas)) (int (default 0 $pool.standby_replicas))) (int (default 0 (get $extra $group.role))) -}}
{{- end -}}
{{- $replicas = int $replicas -}}
{{- $max := $group.maxReplicas -}}
{{- if kindIs "invalid" $max -}}
{{- $max = $replicas -}}
{{- if and (eq $group.name $group.role) $pool.max_replicas -}}
{{- $max = add (int $pool.max_replicas) (int (default 0 $pool.standby_replicas)) -}}
{{- end -}}
{{- end -}}
{{- $max = max (int $max) $replicas | int -}}
{{- $min := $group.minReplicas -}}
{{- if kindIs "invalid" $min -}}
{{- $min = $replicas -}}
{{- if and (eq $group.name $group.role) (dig "autoscaling" "enabled" false $root.Values.config) -}}
{{- $min = min $replicas (add (int (default 1 $pool.min_replicas)) (int (default 0 $pool.standby_replicas))) -}}
{{- end -}}
{{- end -}}
{{- $min = int $min -}}
{{- $_ := set $sums $group.role (add (int (default 0 (get $sums $group.role))) $replicas) -}}
{{- if gt $min $replicas -}}
{{- fail (printf "%s: minReplicas %d is above replicas %d" $where $min $replicas) -}}
{{- end -}}
{{- if gt (int $max) 0 -}}
{{- if not $pool -}}
{{- fail (printf "%s has replicas, and config.pools.%s is missing" $where $group.role) -}}
{{- end -}}
{{- $gpus := int $group.gpusPerWorker -}}
{{- if ne $gpus (int (default 0 $pool.accelerators_per_worker)) -}}
{{- fail (printf "%s: gpusPerWorker is %d, but config.pools.%s.accelerators_per_worker is %d" $where $gpus $group.role (int (default 0 $pool.accelerators_per_worker))) -}}
{{- end -}}
{{- if ne (int $group.tensorParallelSize) (int (default 1 $pool.tensor_parallel_size)) -}}
{{- fail (printf "%s: tensorParallelSize is %d, but config.pools.%s.tensor_parallel_size is %d" $where (int $group.tensorParallelSize) $group.role (int (default 1 $pool.tensor_parallel_size))) -}}
{{- end -}}
{{- if and $pool.accelerator_type (ne $group.gpu $pool.accelerator_type) -}}
{{- fail (printf "%s: gpu is %q, but config.pools.%s.accelerator_type is %q; no worker would be placed there" $where $group.gpu $group.role $pool.accelerator_type) -}}
{{- end -}}
{{- if and (eq $root.Values.image.device "cuda") (not $gpus) -}}
{{- fail (printf "%s: a CUDA image with zero GPUs cannot run an engine; set gpusPerWorker, or image.device to cpu" $where) -}}
{{- end -}}
{{- if and (eq $root.Values.image.device "cpu") $gpus -}}
{{- fail (printf "%s: gpusPerWorker is %d, but the image is for CPU; set image.device to cuda" $where $gpus) -}}
{{- end -}}
{{- if and $pool.node_resource (ne $pool.node_resource $group.role) -}}
{{- fail (printf "config.pools.%s.node_resource: expected %q, the Ray resource of its pods, or nothing" $group.role $group.role) -}}
{{- end -}}
{{- $hosts := 1 -}}
{{- if gt $gpus (int $group.gpusPerNode) -}}
{{- if mod $gpus (int $group.gpusPerNode) -}}
{{- fail (printf "%s: gpusPerWorker %d is no multiple of gpusPerNode %d" $where $gpus (int $group.gpusPerNode)) -}}
{{- end -}}
{{- $hosts = div $gpus (int $group.gpusPerNode) -}}
{{- end -}}
{{- $numCpus := int (ceil (float64 (default 1 $pool.cpus_per_worker))) -}}
{{- $cpus := default (addf (float64 (default 1 $pool.cpus_per_worker)) 0.5) $group.cpus -}}
{{- if lt (float64 $cpus) (float64 (default 1 $pool.cpus_per_worker)) -}}
{{- fail (printf "%s: cpus is %v, but config.pools.%s.cpus_per_worker is %v" $where $cpus $group.role $pool.cpus_per_worker) -}}
{{- end -}}
{{- if $pool.memory_gib_per_worker -}}
{{- if lt (float64 $group.memoryGib) (float64 $pool.memory_gib_per_worker) -}}
{{- fail (printf "%s: memoryGib is %v, but config.pools.%s.memory_gib_per_worker is %v" $where $group.memoryGib $group.role $pool.memory_gib_per_worker) -}}
{{- end -}}
{{- end -}}
{{- $grace := int (default $root.Values.drain.graceS $group.terminationGracePeriodSeconds) -}}
{{- $drain := include "baton.drainTimeout" $root -}}
{{- if le $grace (add (int $drain) 14) -}}
{{- $key := ternary "drain.graceS" (printf "%s: terminationGracePeriodSeconds" $where) (kindIs "invalid" $group.terminationGracePeriodSeconds) -}}
{{- fail (printf "%s is %d s, but a drain may take config.drain.timeout_s = %s s: the pod would be killed with requests in it; set it to at least %d" $key $grace $drain (add (int $drain) 15)) -}}
{{- end -}}
{{- if and (not $group.gpuResource) $gpus (not $group.resourceClaims) -}}
{{- fail (printf "%s: gpuResource is empty and resourceClaims, too; one of them brings the GPUs" $where) -}}
{{- end -}}
{{- range $pair := list (list "priorityClass" "priorityClassName") (list "runtimeClass" "runtimeClassName") -}}
{{- $values := list (get $group (first $pair)) (get $group (last $pair)) | compact | uniq -}}
{{- if gt (len $values) 1 -}}
{{- fail (printf "%s: %s and %s name two classes; leave one of them out" $where (first $pair) (last $pair)) -}}
{{- end -}}
{{- end -}}
{{- $standby := int $group.standbyReplicas -}}
{{- $groups = append $groups (mergeOverwrite $group (dict "workers" $replicas "replicas" (add $replicas $standby) "minReplicas" (add $min $standby) "maxReplicas" (add $max $standby) "hosts" $hosts "gpusPerPod" (div $gpus $hosts) "numCpus" $numCpus "cpus" $cpus "graceS" $grace)) -}}
{{- end -}}
{{- end -}}
{{- range $role, $pool := .Values.config.pools -}}
{{- if $pool -}}
{{- $role = default $role $pool.role -}}
{{- $workers := add (int (default 0 $pool.replicas)) (int (default 0 $pool.standby_replicas)) -}}
{{- if ne (int (default 0 (get $sums $role))) (int $workers) -}}
{{- fail (printf "the %s groups have %d replicas in all, but config.pools.%s.replicas and standby_replicas are %d; make them equal" $role (int (default 0 (get $sums $role))) $role (int $workers)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $groups | toYaml -}}
{{- end -}}
