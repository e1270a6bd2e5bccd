# Completion of piko-forward(1) for fish.
complete -c piko-forward -f
complete -c piko-forward -l check-config -d 'check the settings and exit'
complete -c piko-forward -l config -r -F -d 'read the settings from a file'
complete -c piko-forward -l dump-config -d 'print the settings in effect and exit'
complete -c piko-forward -l reload -x -a '(__fish_complete_pids)' -d 'ask a running process to reload'
complete -c piko-forward -l token-file -r -F -d 'file with the token to present'
complete -c piko-forward -l url -x -a 'http://localhost:8000' -d 'URL to connect to'
complete -c piko-forward -l version -d 'print the version and exit'
complete -c piko-forward -l help -d 'print help'
